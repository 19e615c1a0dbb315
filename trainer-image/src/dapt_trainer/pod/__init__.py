"""Supervises the ranks of one pod: starts them, watches them, reports progress and the outcome. Imports no torch."""
