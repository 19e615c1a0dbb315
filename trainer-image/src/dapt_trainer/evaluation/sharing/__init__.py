"""Divides the work of a measurement over the ranks of a stage, and gives every rank what all of them found."""
