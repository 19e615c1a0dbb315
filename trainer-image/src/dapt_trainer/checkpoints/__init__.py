"""Saves, finds and resumes checkpoints. A checkpoint exists when its signed manifest does."""
