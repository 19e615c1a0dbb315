"""Packs token sequences into rows, writes shards, mixes sources and reads them back. It handles tokens, never text."""
