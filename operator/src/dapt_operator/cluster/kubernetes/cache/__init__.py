"""Keeps the objects that watches and own writes report. Sends no request of its own."""
