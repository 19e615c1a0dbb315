"""Checkpoints that exist only when their manifest does."""
