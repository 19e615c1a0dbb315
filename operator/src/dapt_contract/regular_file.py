"""Reads files that others may have put there: a whole regular file of bounded size, or an error at once.

A run folder may come from a colleague and a work volume from a pod. A pipe in it would be waited for without end, a
link leads out of it, and a file without end fills the memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class NotAFileError(OSError):
    """There is something else in the place of a file: a link, a pipe, a folder, or more than a file may hold."""


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file.

    Raises:
        NotAFileError: a link, no regular file, or longer than `max_bytes`.
        OSError: missing, or not readable.
    """
    try:
        # Without waiting for the other end of a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        # Linux answers ENXIO for a socket.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotAFileError(error.errno, "a link or a socket and not a file", str(path)) from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise NotAFileError(errno.EINVAL, "not a regular file", str(path))
        # One byte more tells a longer file from one that just fits, also of a file that grows meanwhile.
        content = file.read(max_bytes + 1) if found.st_size <= max_bytes else b""
    if max(len(content), found.st_size) > max_bytes:
        raise NotAFileError(errno.EFBIG, f"larger than {max_bytes:,} bytes", str(path))
    return content
