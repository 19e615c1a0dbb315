"""Loads, composes, shards and saves models. Knows no data set, no loop and no checkpoint."""
