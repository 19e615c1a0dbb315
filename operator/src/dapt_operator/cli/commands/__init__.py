"""One module a command of `dapt`.

A command reads its arguments, calls the planner or the cluster, and prints; it decides nothing itself.
"""
