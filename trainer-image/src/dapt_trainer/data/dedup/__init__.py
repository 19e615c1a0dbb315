"""Finds near-duplicates and text that evaluation items contain. Removes nothing itself."""
