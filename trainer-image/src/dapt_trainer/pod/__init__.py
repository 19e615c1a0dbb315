"""The supervisor of one pod: starts the ranks, watches them, reports progress and the outcome.

Imports no torch.
"""
