"""Folders within folders, deeper than Python recurses and than a path may be long."""

from __future__ import annotations

import os
from pathlib import Path


def make_deep(folder: Path, levels: int = 1500) -> None:
    """Make a folder with a number of others, each within the one before, with a file in the last."""
    folder.mkdir(parents=True)
    current = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("dd", dir_fd=current)
        inner = os.open("dd", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = inner
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=current))
    os.close(current)
