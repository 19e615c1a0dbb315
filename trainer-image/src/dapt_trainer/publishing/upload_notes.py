"""Names the notes that an upload to an object store begins with and removes at its end.

A store shows each object as soon as it is whole, so an upload that was cut off leaves objects without `dapt.json`. The
note is the content of that manifest under another name, put before any file: it says whose the objects are, and which
content was begun. Its name has the digest of its content, and none is ever overwritten. So while it is the only note,
each object of the right size is the file that it lists, and the next run leaves it there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from dapt_trainer.publishing.published_files import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

NOTE_PREFIX: Final = ".dapt-writing-"
_SHOWN_DIGITS: Final = 12
_NAME: Final = re.compile(rf"{re.escape(NOTE_PREFIX)}[0-9a-f]{{{_SHOWN_DIGITS}}}")
MAX_NOTES: Final = 32
"""Each is read whole. An upload leaves one, or a few where its files changed between cuts."""


def note_name(manifest: bytes) -> str:
    """Return the name of the note of an upload, by the content of its manifest."""
    return f"{NOTE_PREFIX}{hashlib.sha256(manifest).hexdigest()[:_SHOWN_DIGITS]}"


def notes_in(root: str, paths: Iterable[str]) -> list[str]:
    """Return the paths that are notes of uploads to a prefix, in their order.

    They lie right below it: what has such a name elsewhere, or nearly such a name, is somebody's object.
    """
    start = f"{root}/"
    return sorted(path for path in paths if path.startswith(start) and _NAME.fullmatch(path[len(start) :]))


def contents_of(
    filesystem: AbstractFileSystem, paths: Iterable[str], sizes: Mapping[str, int]
) -> list[bytes]:
    """Return what objects hold as manifests; nothing for one that is too large to be one, which is not read."""
    return [filesystem.cat_file(path) if sizes[path] <= MAX_MANIFEST_BYTES else b"" for path in paths]
