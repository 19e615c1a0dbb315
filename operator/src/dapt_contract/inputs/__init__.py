"""Knows what models, sources and tasks are from their files and names alone: no weights, no network."""
