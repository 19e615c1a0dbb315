"""Reads documents from files and object stores in batches. It drops no record without counting it."""
