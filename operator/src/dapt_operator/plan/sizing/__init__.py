"""Computes steps, batches, memory and GPU-hours from the spec, the profile and the model. Knows no run."""
