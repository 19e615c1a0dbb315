"""Validates documents and words every problem at once.

Reads text that it is given; opens no file and asks no cluster.
"""
