"""Splits a file that is one JSON array into its elements, without holding more than one of them.

The elements are found by their brackets and commas outside of strings; each is then parsed like a line of JSON, so a
bad one costs itself alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from dapt_trainer.data.reading.sources import SourceFile
from dapt_trainer.data.reading.unpacked import MAX_LINE_BYTES, BadFileError, open_unpacked, refuse_other_text

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

READ_BYTES = 1024 * 1024
"""Bytes that are read at a time."""
_BEGINNING_BYTES = 64 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""A whole string; the beginning of one whose end is not read yet; or a mark of structure."""


def has_array(filesystem: AbstractFileSystem, file: SourceFile, *, needs_name: bool = True) -> bool:
    """Return whether a file is one JSON array instead of JSON lines.

    Args:
        filesystem: of the file.
        file: of the format jsonl.
        needs_name: whether only a `.json` file may be one; otherwise an array of objects is one under any name.

    Raises:
        BadFileError: the file cannot be read.
    """
    is_named = file.path.lower().removesuffix(file.compression).endswith(".json")
    if needs_name and not is_named:
        return False
    with open_unpacked(filesystem, file) as stream:
        beginning = stream.read(_BEGINNING_BYTES).removeprefix(_BYTE_ORDER_MARK).lstrip()
    if is_named:
        return beginning.startswith(b"[")
    return beginning.startswith(b"[") and beginning[1:].lstrip().startswith(b"{")


def elements_of(stream: BinaryIO, file: SourceFile) -> Iterator[bytes]:
    """Yield the elements of the array as they are written.

    Raises:
        BadFileError: it breaks off, goes on behind its end, or has an element that is too long.
    """
    buffer = stream.read(max(READ_BYTES, _BEGINNING_BYTES))
    refuse_other_text(file, buffer)
    buffer = buffer.removeprefix(_BYTE_ORDER_MARK).lstrip()[1:]
    start = position = depth = count = 0
    while True:
        token = _TOKEN.search(buffer, position)
        if token is None or token.group() == b'"':
            # What is behind the last whole token is looked at again with what follows it.
            position = len(buffer) if token is None else token.start()
            if len(buffer) - start > MAX_LINE_BYTES:
                raise BadFileError(
                    f"{file.label}: element {count + 1} of its array is longer than {MAX_LINE_BYTES >> 20} MiB; "
                    "shorten it"
                )
            # More each time, since a long string is looked at from its beginning.
            content = stream.read(max(READ_BYTES, len(buffer) - start))
            if not content:
                raise BadFileError(
                    f"{file.label}: its array breaks off in element {count + 1}; copy it again"
                )
            buffer, position, start = buffer[start:] + content, position - start, 0
            continue
        position = token.end()
        mark = token.group()
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]") and depth:
            depth -= 1
        elif mark in (b",", b"]") and not depth:
            element = buffer[start : token.start()].strip()
            start = position
            if mark == b"," or element or count:
                count += 1
                yield element
            if mark == b"]":
                break
    if buffer[position:].strip() or stream.read(READ_BYTES).strip():
        raise BadFileError(
            f"{file.label}: has text behind the end of its array; give one array or one record a line"
        )
