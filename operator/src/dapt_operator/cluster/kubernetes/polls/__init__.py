"""Requests at a limited rate what no watch reports: progress, pod logs, refused pods, Kueue's Workloads.

Changes nothing in the cluster.
"""
