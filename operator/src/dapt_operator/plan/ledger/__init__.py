"""Keeps the history of runs: what each run reported, which may be retried, what it cost, what may be dropped.

Decides no stage.
"""
