"""Walks and removes folders of a volume that others may write to: thousands deep, with links, or without rights.

Python's own `shutil.rmtree` and `Path.rglob` call themselves once for each level, so folders that are deep enough end
them by RecursionError, and paths that are long enough name nothing that the system opens.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from dapt_contract.layout import try_number
from dapt_contract.untrusted.regular_files import IrregularFileError, open_regular

DEEPEST = 64
"""Folders within each other that anything of dapt, or a library that it uses, could have made."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_folder(folder: Path) -> bool:
    """Remove what lies at a path as far as that is possible, and return whether nothing is left.

    Links are removed and never followed, the last part of the path itself included. What cannot be removed stays
    without an error; whoever needs the place finds out when they make it again.
    """
    try:
        parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return not os.path.lexists(folder)
    try:
        with contextlib.suppress(OSError):
            _remove_at(folder.name, parent)
        return not _exists_at(folder.name, parent)
    finally:
        os.close(parent)


def _remove_at(name: str, parent: int) -> None:
    if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    top = _open_folder(name, parent)
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(top: int) -> None:
    """Remove all that is in a folder: a folder that is not empty first moves up, so nothing is ever two levels deep."""
    # Moved folders go to the end of the list; each pass over one removes its files and moves its folders up.
    pending = _unlink_files(top)
    while pending:
        name = pending.pop()
        with contextlib.suppress(OSError):
            inner = _open_folder(name, top)
            try:
                for child in _unlink_files(inner):
                    # In the way of no other name: a process that removes the same folder moves its folders too.
                    moved = f".removed-{secrets.token_hex(8)}"
                    with contextlib.suppress(OSError):
                        _allow_all(child, inner)  # a folder that may not be written to does not move
                        os.rename(child, moved, src_dir_fd=inner, dst_dir_fd=top)
                        pending.append(moved)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)


def _unlink_files(folder: int) -> list[str]:
    """Remove all in a folder that is no folder; return the names of those that are left."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in found if is_folder]


def _open_folder(name: str, parent: int) -> int:
    _allow_all(name, parent)
    return os.open(name, _FOLDER, dir_fd=parent)


def _allow_all(name: str, parent: int) -> None:
    """Give the owner of a folder all rights on it, where it is ours and lacks any."""
    mode = os.lstat(name, dir_fd=parent).st_mode
    if mode & stat.S_IRWXU == stat.S_IRWXU:
        return
    # By a descriptor that needs no rights: the name may have become a link to a folder elsewhere.
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        with contextlib.suppress(OSError):  # it is somebody else's
            os.chmod(f"/proc/self/fd/{descriptor}", stat.S_IMODE(mode) | stat.S_IRWXU)
    finally:
        os.close(descriptor)


def _exists_at(name: str, parent: int) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def run_folders(lineage: Path) -> list[tuple[int, Path]]:
    """Return (number, folder) of all runs in a lineage's folder, in the order of their numbers.

    What has another name, or is a link, is no run's: what is removed or read below it could lie anywhere.
    """
    found = [(try_number(path.name), path) for path in lineage.glob("try-*")]
    return sorted(
        (number, path)
        for number, path in found
        if number is not None and path.is_dir() and not path.is_symlink()
    )


def paths_below(folder: Path) -> list[Path]:
    """Return everything below a folder, sorted; links to folders are returned and not entered. Empty if it is missing.

    Raises:
        IrregularFileError: folders within folders that nothing of dapt has made.
        OSError: a folder cannot be read.
    """
    return sorted(_below(folder))


def copy_folder(source: Path, target: Path) -> None:
    """Copy the regular files of a folder, and the folders that they lie in, to a new one.

    Raises:
        IrregularFileError: something else lies in it, such as a link: its target would be copied.
        OSError: a file cannot be read or written.
    """
    target.mkdir()
    for path in paths_below(source):
        name = path.relative_to(source).as_posix()
        if path.is_dir() and not path.is_symlink():
            (target / name).mkdir()
            continue
        with os.fdopen(open_regular(source, name), "rb") as read, (target / name).open("xb") as written:
            shutil.copyfileobj(read, written)


def _below(folder: Path) -> Iterator[Path]:
    pending = [(folder, 0)] if folder.is_dir() else []
    while pending:
        current, depth = pending.pop()
        if depth > DEEPEST:
            raise IrregularFileError(
                errno.ELOOP, f"folders within each other, over {DEEPEST} deep", str(folder)
            )
        with os.scandir(current) as entries:
            for entry in entries:
                path = current / entry.name
                yield path
                if entry.is_dir(follow_symlinks=False):
                    pending.append((path, depth + 1))
