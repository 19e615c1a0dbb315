"""Writes the published model: its card, its manifest, and the files at the destination."""
