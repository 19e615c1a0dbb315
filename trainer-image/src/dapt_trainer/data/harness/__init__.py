"""Stores tasks of lm-evaluation-harness with their data, so that measuring needs no network. It scores nothing."""
