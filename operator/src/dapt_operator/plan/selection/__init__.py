"""Compares candidates: gathers them, chooses the best one under the gates, decides what follows an attempt.

Starts no run and reads stored numbers alone, so that an edit of the gates or of the selection decides again.
"""
