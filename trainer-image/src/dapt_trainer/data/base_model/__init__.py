"""Fetches the base model, converts it where needed and records its facts. Trains nothing."""
