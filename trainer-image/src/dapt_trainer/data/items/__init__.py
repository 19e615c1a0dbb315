"""Reads and checks custom evaluation items and tuning data, with file and line of every mistake.

Tokenizes nothing.
"""
