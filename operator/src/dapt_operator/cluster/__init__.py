"""Contains the only input and output of the operator: a port of five verbs and its adapters.

Decides nothing: which object to create, delete or report is the planner's.
"""
