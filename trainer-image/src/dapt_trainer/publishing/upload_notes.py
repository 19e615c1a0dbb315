"""Names the notes that an upload to an object store begins with and removes at its end.

A store shows each object as soon as it is whole, so an upload that was cut off leaves objects without `dapt.json`. The
note is the content of that manifest under another name, put before any file: it says whose the objects are, and which
content was begun. Its name has the digest of its content, and none is ever overwritten. So while it is the only note,
each object of the right size is the file that it lists, and the next run leaves it there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

NOTE_PREFIX: Final = ".dapt-writing-"
_SHOWN_DIGITS: Final = 12


def note_name(manifest: bytes) -> str:
    """Return the name of the note of an upload, by the content of its manifest."""
    return f"{NOTE_PREFIX}{hashlib.sha256(manifest).hexdigest()[:_SHOWN_DIGITS]}"


def notes_in(paths: Iterable[str]) -> list[str]:
    """Return the paths that are notes, in their order."""
    return sorted(path for path in paths if path.rpartition("/")[2].startswith(NOTE_PREFIX))
