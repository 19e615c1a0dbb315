"""Moves the folders that prepare made to their place on the work volume."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dapt_contract.envelope import fsync_folder
from dapt_contract.layout import DATA, PREPARED
from dapt_contract.untrusted.folders import remove_folder


def move_into_place(prepared: Path, work: Path, trash: Path) -> None:
    """Replace the folders on the work volume by those below `prepared`, the data with its manifest last.

    Args:
        prepared: folder with the new folders; removed at the end.
        work: root of the work volume.
        trash: folder on the same volume that the old folders are moved to.

    Raises:
        OSError: the volume cannot be written.
    """
    # The old data goes first: a reader must never find its manifest next to folders of another run.
    _replace(work / DATA, None, trash)
    for name in PREPARED:
        folder = prepared / name
        _replace(work / name, folder if folder.is_dir() else None, trash)
    fsync_folder(work)
    remove_folder(prepared)


def move_folder(source: Path, target: Path, trash: Path) -> None:
    """Replace one folder of the work volume by a finished one.

    Raises:
        OSError: the volume cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _replace(target, source, trash)
    fsync_folder(target.parent)


def _replace(target: Path, source: Path | None, trash: Path) -> None:
    # Renames alone: a removal takes long, and a kill in the middle of it would leave half a folder in place.
    if os.path.lexists(target):  # a link to nothing would be in the way too
        target.rename(trash / f"old-{target.name}-{time.monotonic_ns()}")
    if source is not None:
        source.rename(target)
