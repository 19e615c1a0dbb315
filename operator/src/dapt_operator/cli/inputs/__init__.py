"""Reads what a command needs from this machine: manifests, model headers, file sizes, GPUs.

Writes nothing.
"""
