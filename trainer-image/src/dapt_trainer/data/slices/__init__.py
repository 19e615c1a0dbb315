"""Cuts the corpus into slices, shares them among processes and pods, and puts what they leave together again.

Where a slice is read, and by whom, changes nothing of what it leaves. No process sends another one anything but the
number of a slice and how its reading ended: documents go through files.
"""
