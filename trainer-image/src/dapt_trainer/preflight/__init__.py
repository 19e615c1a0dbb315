"""Measures devices, links, shared memory, the work volume and clocks before a stage holds its GPUs for hours.

It promises to end within about a minute, to leave no file behind, and to load no model. On CPU it moves a few MiB.
"""
