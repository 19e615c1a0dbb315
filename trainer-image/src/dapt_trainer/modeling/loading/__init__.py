"""Loads stored models: whole, divided over ranks, or spread for training."""
