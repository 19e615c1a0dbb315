"""Reads and checks custom evaluation items and tuning data, and reports mistakes with file and line.

It tokenizes nothing.
"""
