"""Asks at a limited rate for what no watch reports: progress, pod logs, refusals, Kueue's workloads.

Changes nothing in the cluster.
"""
