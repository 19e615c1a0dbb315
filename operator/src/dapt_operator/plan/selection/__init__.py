"""Compares candidates: gathers them, chooses the best one under the gates, decides what follows an attempt.

Starts no run.
"""
