"""Reads the beginning of a local file of JSON records: enough to see its fields and to estimate how many it has."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from typing import Final

from dapt_contract.inputs.source_files import LocalFile, file_format

SAMPLE_BYTES = 1 << 20
"""Bytes of a file that are read."""
_READABLE: Final = (("jsonl", ""), ("jsonl", ".gz"))
_BETWEEN_ITEMS: Final = re.compile(r"[\s,]*")


def beginning(file: LocalFile) -> tuple[str, int] | None:
    """Return the text at the beginning of a file, and how many of the file's bytes it takes.

    None for a file of another type, and for one that cannot be read: the stage that needs it says why.
    """
    if file_format(file.path) not in _READABLE:
        return None
    try:
        with open(file.path, "rb") as stream:
            content = stream.read(SAMPLE_BYTES)
        if not file.path.lower().endswith(".gz"):
            return _decoded(content), len(content)
        unpacked = zlib.decompressobj(wbits=31)
        return _decoded(unpacked.decompress(content)), len(content)
    except (OSError, zlib.error):
        return None


def _decoded(content: bytes) -> str:
    """Return the characters; a broken one, as at the end of what was read, is left out."""
    return content.decode("utf-8-sig", errors="ignore")


def is_array(text: str) -> bool:
    """Whether the records are the items of one JSON array, and not lines."""
    return text.lstrip()[:1] == "["


def array_items(text: str) -> Iterator[tuple[object, int]]:
    """Yield each item of the array that a text begins with, and the number of characters up to its end.

    Ends before the first item that is cut off or damaged.
    """
    decoder = json.JSONDecoder()
    end = text.find("[") + 1
    while True:
        start = _BETWEEN_ITEMS.match(text, end).end()  # type: ignore[union-attr]  # it matches an empty text too
        try:
            item, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            return
        yield item, end


def first_record(text: str) -> object:
    """Return the first record; None where it is cut off, or none that JSON knows."""
    if is_array(text):
        return next((item for item, _ in array_items(text)), None)
    line = next((line for line in text.split("\n") if line.strip()), "")
    try:
        record: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record
