"""Generates the CRDs, and the CEL rules in them, from the models. No rule is written here a second time."""
