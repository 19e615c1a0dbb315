"""Shared by the tests: builders of valid objects, toy models and corpora, worlds. Asserts nothing about the product."""
