"""Finds what a run folder must not hold when processes are going to write to it: links that lead out, and no files.

A run folder may come from somebody else. Written through a link in it, a lock, a log or a checkpoint would replace a
file of the user's somewhere else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_FILE_FOLDERS: Final = ("", "objects", "logs")
"""Folders, relative to the run folder, in which files are opened by their names."""
_MAX_ENTRIES: Final = 2_000_000


def foreign_entry(folder: Path) -> str | None:
    """Return a clause about the first entry below a run folder that leads out of it; None when there is none.

    Args:
        folder: of the run, without links in its own path.
    """
    for number, (path, mode) in enumerate(_entries(folder)):
        if number > _MAX_ENTRIES:
            return f"more than {_MAX_ENTRIES:,} files and folders in it"
        place = path.parent.relative_to(folder).as_posix()
        if stat.S_ISLNK(mode):
            target = Path(os.path.realpath(path))
            if not target.is_relative_to(folder):
                return f"{path} is a link to {target}, outside of the run's folder"
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and place.strip(".") in _FILE_FOLDERS:
            return f"{path} is no file"
    return None


def _entries(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield everything below a folder with its mode, links unfollowed, but not what is removed anyway."""
    # Not by recursion: somebody may have made folders within folders, thousands deep.
    pending = [folder]
    while pending:
        inner = pending.pop()
        with os.scandir(inner) as entries:
            for entry in entries:
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_mode
                if entry.is_dir(follow_symlinks=False) and not _is_removed(folder, Path(entry.path)):
                    pending.append(Path(entry.path))


def _is_removed(folder: Path, path: Path) -> bool:
    """Return whether a folder is removed, through no link, before anything is written there: a killed process may have
    left anything in it."""
    parts = path.relative_to(folder).parts
    is_scratch = len(parts) == 3 and parts[0] == "pods" and parts[2] == "scratch"
    return is_scratch or (parts[:2] == ("work", "stages") and parts[-1] == "spool")
