"""Knows where hub caches, git-annex and DVC keep the contents of files that they lay out as links."""

from __future__ import annotations

import os
from collections.abc import Iterator


def content_stores(folder: str) -> Iterator[str]:
    """Yield the folders that hold the contents of a folder's files, by the layout of who made them.

    Compare what a link leads to with these once both are free of links: neither a store nor what lies in it may be one.

    Args:
        folder: free of links.
    """
    while True:
        parent, name = os.path.split(folder)
        if name == "snapshots":
            yield os.path.join(parent, "blobs")
        yield os.path.join(folder, ".git", "annex", "objects")
        yield os.path.join(folder, ".dvc", "cache")
        if parent == folder:
            return
        folder = parent
