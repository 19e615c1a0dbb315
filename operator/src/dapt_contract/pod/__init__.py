"""Defines how a pod and the operator talk: environment, progress, termination message and exit codes."""
