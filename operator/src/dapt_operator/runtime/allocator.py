"""Keeps what was freed from staying with the process.

The allocator of the C library gives each thread an area of its own, up to eight for each core, and what one thread has
freed no other one can use. It also keeps large blocks once such a block was freed. The operator parses a page of long
objects in one thread and a status in another, so a sixth of its memory was in use by nobody.
"""

from __future__ import annotations

import ctypes
from typing import Final

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
"""Numbers of the settings, as glibc's malloc.h has them."""
ARENAS: Final = 2
"""Python's own lock lets one thread run at a time, so more would save no waiting."""
LARGE_BYTES: Final = 256 * 1024
"""Blocks of this size and more are mapped one by one, and given back when they are freed."""


def keep_little() -> bool:
    """Limit what the allocator keeps; return whether it accepts that. Call it before other threads start."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # another C library than glibc
    settings = ((_ARENA_MAX, ARENAS), (_MMAP_THRESHOLD, LARGE_BYTES), (_TRIM_THRESHOLD, LARGE_BYTES))
    answers = [mallopt(number, value) for number, value in settings]
    return all(answers)
