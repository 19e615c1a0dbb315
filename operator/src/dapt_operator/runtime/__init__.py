"""The running operator: watches, work queue, lease, HTTP server, metrics.

It wakes the reconcile and decides nothing itself.
"""
