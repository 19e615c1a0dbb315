"""Finds near-duplicates, and documents that contain evaluation items. It removes nothing."""
