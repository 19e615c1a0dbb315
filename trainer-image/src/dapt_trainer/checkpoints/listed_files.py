"""Reads the files of a checkpoint as its manifest lists them: regular files alone, each with its SHA-256.

Whoever can write to the work volume can change a file between a check and its use. So a file is opened once, through no
link, and what is used is what was hashed: a small file as one piece of memory, a large one from the same descriptor,
which must show no change once it was read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from dapt_contract.checkpoint import FileEntry
from dapt_contract.untrusted.regular_files import IrregularFileError, checked_parts, open_regular

MEMORY_BYTES = 64 * 2**20
"""Files up to this size are read as a whole; larger ones, the states of the optimizer, never twice into memory."""
_BLOCK_BYTES = 4 * 2**20


class ChangedFileError(Exception):
    """Reports a file that is not the one which a manifest lists."""


def problem_of_listing(
    folder: Path, entries: Iterable[FileEntry], *, leftovers: str | None = None
) -> str | None:
    """Return how the files below a folder differ from a list, in names, kinds and sizes; None when they do not.

    Args:
        folder: of the checkpoint.
        entries: what its manifest lists.
        leftovers: folder in it that may hold further files: a run that deleted them was interrupted.
    """
    expected: dict[str, int] = {}
    for entry in entries:
        try:
            checked_parts(entry.path)
        except IrregularFileError as error:
            return f"it lists {entry.path!r}, which is {error.strerror}"
        if entry.path in expected:
            return f"it lists {entry.path} twice"
        expected[entry.path] = entry.size_bytes
    if not stat.S_ISDIR(folder.lstat().st_mode if os.path.lexists(folder) else 0):
        return f"its folder {folder.name} is missing or no folder"
    found = dict(_walk(folder))
    for name, size in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] is None:
            return f"{name} is not a regular file"
        if found[name] != size:
            return f"{name} has {found[name]} bytes, but {size} were written"
    for name in sorted(found.keys() - expected.keys()):
        if leftovers is None or not name.startswith(f"{leftovers}/"):
            return f"its folder has {name}, which the manifest does not list"
    return None


def _walk(folder: Path) -> Iterator[tuple[str, int | None]]:
    """Yield every name below a folder with its size; None for what is neither a regular file nor a folder."""
    # Not by recursion: somebody may have made folders within folders, thousands deep.
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                else:
                    is_file = entry.is_file(follow_symlinks=False)
                    yield name, entry.stat(follow_symlinks=False).st_size if is_file else None


def problem_of_file(folder: Path, entry: FileEntry) -> str | None:
    """Return what is wrong with a listed file's content, by hashing it; None when it is the one that was written."""
    try:
        with _opened(folder, entry):
            return None
    except ChangedFileError as error:
        return str(error)


def read_listed(folder: Path, entry: FileEntry) -> bytes:
    """Return the content of a small listed file.

    Raises:
        ChangedFileError: it is not the one that was written.
    """
    with _opened(folder, entry, in_memory=True) as content:
        if isinstance(content, io.BytesIO):
            return content.getvalue()
        raise AssertionError("a file that is read into memory is bytes")


@contextlib.contextmanager
def open_listed(folder: Path, entry: FileEntry) -> Iterator[io.BytesIO | str]:
    """Give the content of a listed file: its bytes, or for a large one a path that leads to the checked file alone.

    Raises:
        ChangedFileError: it is not the one that was written, or it changed while it was read.
    """
    with _opened(folder, entry) as content:
        yield content


@contextlib.contextmanager
def _opened(folder: Path, entry: FileEntry, *, in_memory: bool = False) -> Iterator[io.BytesIO | str]:
    try:
        descriptor = open_regular(folder, entry.path)
    except IrregularFileError as error:
        raise ChangedFileError(f"{entry.path} is {error.strerror}") from error
    except OSError as error:
        raise ChangedFileError(f"{entry.path} cannot be read ({error.strerror})") from error
    try:
        if entry.size_bytes <= MEMORY_BYTES or in_memory:
            # Of what it should have and one byte more: a file that grew must not fill the memory.
            content = _read(descriptor, entry.size_bytes + 1)
            _require_same(entry, hashlib.sha256(content).hexdigest())
            yield io.BytesIO(content)
            return
        before = _identity(descriptor)
        _require_same(entry, _sha256(descriptor))
        # The link of the descriptor leads to this very file, whatever has its name by now.
        yield f"/proc/self/fd/{descriptor}"
        if _identity(descriptor) != before:
            raise ChangedFileError(f"{entry.path} was written to while it was read")
    finally:
        os.close(descriptor)


def _read(descriptor: int, most_bytes: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read(most_bytes)


def _sha256(descriptor: int) -> str:
    digest = hashlib.sha256()
    with os.fdopen(os.dup(descriptor), "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _identity(descriptor: int) -> tuple[int, int, int]:
    found = os.fstat(descriptor)
    # The change time cannot be set: a write moves it, even one that sets the modification time back.
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _require_same(entry: FileEntry, sha256: str) -> None:
    if sha256 != entry.sha256:
        raise ChangedFileError(f"{entry.path} was altered (its SHA-256 differs)")
