"""Fits a model, its batch and its ranks into the memory of the accelerators."""
