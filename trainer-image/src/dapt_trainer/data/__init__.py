"""Corpora: sources, deduplication, held-out split, packing, shards, mixture."""
