"""Reads documents from files and stores, in batches. Drops nothing silently."""
