"""Launchers turn a stage run into manifests, and objects back into the state of a run. Pure.

A new launcher: a module with the two functions of `Launcher`, one line in `LAUNCHERS`, golden manifests in the tests.
"""
