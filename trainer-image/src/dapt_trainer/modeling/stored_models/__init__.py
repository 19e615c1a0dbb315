"""Checks and reads the files of a model folder before anything of it is loaded."""
