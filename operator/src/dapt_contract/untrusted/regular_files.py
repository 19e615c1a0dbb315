"""Opens files of a volume that others may write to: regular files alone, below a folder, and through no link.

A path that was checked may name another file a moment later, so everything that is checked is read from the descriptor
that is returned here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class IrregularFileError(OSError):
    """Reports a path that is no regular file below its folder: a link, a folder, a device, or a name that leads out."""


def open_regular(root: Path, name: str) -> int:
    """Return a descriptor of a regular file, for reading; whoever calls this closes it.

    Args:
        root: folder that is trusted as it is.
        name: path relative to it, with `/`; no part of it may be a link.

    Raises:
        IrregularFileError: the name leads out of the folder or is not a name, or no regular file lies there.
        FileNotFoundError: nothing lies there.
        OSError: it cannot be opened.
    """
    *folders, last = checked_parts(name)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            inner = _open_at(part, folder, os.O_DIRECTORY, name)
            os.close(folder)
            folder = inner
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = _open_at(last, folder, os.O_NONBLOCK, name)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IrregularFileError(errno.EINVAL, "not a regular file", name)
    return descriptor


def checked_parts(name: str) -> list[str]:
    """Return the parts of a relative path.

    Raises:
        IrregularFileError: it is absolute, leads out of its folder, or is not a path.
    """
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise IrregularFileError(errno.EINVAL, "not the name of a file below its folder", name)
    return parts


def _open_at(part: str, folder: int, flags: int, name: str) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except (OSError, UnicodeEncodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOENT:
            raise FileNotFoundError(errno.ENOENT, "is missing", name) from error
        # ELOOP: a link in the place of a file; ENOTDIR: one in the place of a folder; ENXIO: a socket.
        if isinstance(error, UnicodeEncodeError) or error.errno in (
            errno.ELOOP,
            errno.ENOTDIR,
            errno.ENXIO,
            errno.ENAMETOOLONG,
        ):
            raise IrregularFileError(errno.EINVAL, "not a regular file", name) from error
        raise


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file: whole, of bounded size, and no link.

    A run folder may come from a colleague and a work volume from a pod: a pipe in it would be waited for without end, a
    link leads out of it, and a file without end fills the memory.

    Raises:
        IrregularFileError: a link, no regular file, or longer than `max_bytes`.
        OSError: missing, or not readable.
    """
    return read_regular_below(path.parent, path.name, max_bytes)


def read_regular_below(root: Path, name: str, max_bytes: int) -> bytes:
    """Return the content of a file below a folder, as `read_regular_file`; no part of its path below it is a link.

    Args:
        root: folder that is trusted as it is.
        name: path relative to it, with `/`.
        max_bytes: of the content.

    Raises:
        IrregularFileError: a link, no regular file, a name that leads out, or longer than `max_bytes`.
        OSError: missing, or not readable.
    """
    with os.fdopen(open_regular(root, name), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        # One byte more tells a longer file from one that just fits, also of a file that grows meanwhile.
        content = file.read(max_bytes + 1) if size <= max_bytes else b""
    if max(len(content), size) > max_bytes:
        raise IrregularFileError(errno.EFBIG, f"larger than {max_bytes:,} bytes", str(root / name))
    return content
