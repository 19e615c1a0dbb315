"""Reads a sample of a source for its `maxTokens`, without reading all of it where that can be avoided.

A source is divided into parts: ranges of bytes of a plain file of JSON lines, which are found without reading what lies
before them; whole text files; and passes over compressed files, Parquet files and JSON arrays, of which each takes
every R-th block of records, drawn at random. The parts are put in an order by a keyed hash of their names, and `PLACES`
of them are read in turns. The order depends on the seed and on the names and sizes of the files, but neither on the
folder that they lie in nor on the number of processes, so a second run reads the same.

A compressed file or an array can only be read from its beginning. R grows with the share that is left out, up to
`MAX_PASSES`: of a much larger file no more than this multiple of the wanted text is unpacked, from the beginning.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dapt_trainer.data.reading.documents import (
    BYTE_MARK,
    BadRecord,
    Document,
    read_file,
    read_part,
)
from dapt_trainer.data.reading.file_parts import FilePart
from dapt_trainer.data.reading.json_arrays import has_array
from dapt_trainer.data.reading.sources import ResolvedSource, SourceFile

PLACES = 16
"""Parts that are open at a time: a small sample of many files is taken from as many."""
MAX_PASSES = 32
_PARTS_WANTED = 64
"""Plain files are divided so that the sample comes from about this number of ranges."""
_MIN_RANGE_BYTES, _MAX_RANGE_BYTES = 512, 4 * 1024 * 1024
_SPARE_PASSES = 2
"""Passes are made for a sample of this part of the estimate: text that is packed better than usual would otherwise be
taken from the beginning of its file."""
_MAX_PARTS = 200_000
_BYTES_PER_TOKEN = 4
_UNPACKED = {".gz": 3.0, ".zst": 3.5, ".parquet": 2.5}
"""Typical factors from packed to plain text, by the end of a file's name; they decide how much is skipped."""
MAX_COUNTED_BYTES = 64 * 1024 * 1024
"""A line further behind is named by its byte: counting the lines before it would read all of them."""

_COUNTED_AT_ONCE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Sample:
    """Says which sample of a source is read."""

    max_tokens: int
    seed: int


def sampled_documents(
    source: ResolvedSource, text_field: str, sample: Sample
) -> Iterator[Document | BadRecord]:
    """Yield the records of a source in the order of the sample: the first of them are the sample.

    Raises:
        BadFileError: a file breaks off, is not what its name says, or lacks the column.
    """
    parts, turn = _parts(source, sample)
    waiting = deque(parts)
    checked: set[str] = set()
    places: deque[tuple[FilePart, Iterator[Document | BadRecord]]] = deque()
    while waiting or places:
        # Two passes at a time would take the beginning of the file twice as densely as the rest.
        open_files = {part.file.path for part, _ in places if part.num_passes > 1}
        while waiting and len(places) < PLACES and waiting[0].file.path not in open_files:
            part = waiting.popleft()
            if part.first_byte and part.file.path not in checked:
                # What a file is shows at its beginning, which another part holds.
                next(read_file(source.filesystem, part.file, text_field), None)
            checked.add(part.file.path)
            places.append((part, read_part(source.filesystem, part, text_field)))
            if part.num_passes > 1:
                open_files.add(part.file.path)
        part, records = places.popleft()
        characters = 0
        for record in records:
            yield record
            characters += len(record.text) if isinstance(record, Document) else 1
            if characters >= turn:
                places.append((part, records))
                break


def _parts(source: ResolvedSource, sample: Sample) -> tuple[list[FilePart], int]:
    """Return the parts of a source in the order of the sample, and the characters of one turn."""
    wanted = _BYTES_PER_TOKEN * sample.max_tokens
    sizes = [file.size_bytes * _UNPACKED.get(_ending(file), 1.0) for file in source.files]
    total = sum(sizes)
    range_bytes = min(max(wanted // _PARTS_WANTED, _MIN_RANGE_BYTES), _MAX_RANGE_BYTES)
    range_bytes = max(range_bytes, int(total) // _MAX_PARTS)
    num_passes = 1 if total <= wanted else min(max(1, int(_SPARE_PASSES * total / wanted)), MAX_PASSES)
    folder = os.path.commonpath([os.path.dirname(file.path) for file in source.files])
    parts: list[tuple[int, bytes, FilePart]] = []
    key = sample.seed.to_bytes(8, "little", signed=True)
    for file in source.files:
        name = file.path[len(folder) :].encode("utf-8", "surrogateescape")
        has_ranges = (
            file.format == "jsonl" and not file.compression and not has_array(source.filesystem, file)
        )
        file_range = range_bytes if has_ranges else 0
        for number, part in enumerate(_parts_of_file(file, file_range, num_passes, key + name)):
            order = hashlib.blake2b(b"%s:%d" % (name, number), digest_size=16, key=key).digest()
            # All files have their first pass before one has its second.
            parts.append((part.number, order, part))
    parts.sort(key=lambda entry: entry[:2])
    return [part for *_, part in parts], min(range_bytes, max(1, wanted // _PARTS_WANTED))


def _parts_of_file(file: SourceFile, range_bytes: int, num_passes: int, key: bytes) -> list[FilePart]:
    if file.format == "text":
        return [FilePart(file)]
    if range_bytes:
        return [
            FilePart(file, first_byte=first, end_byte=first + range_bytes)
            for first in range(0, file.size_bytes, range_bytes)
        ]
    return [FilePart(file, number=number, num_passes=num_passes, key=key) for number in range(num_passes)]


def _ending(file: SourceFile) -> str:
    return file.compression or (".parquet" if file.format == "parquet" else "")


def with_line(bad: BadRecord, source: ResolvedSource, *, reads_all: bool = False) -> BadRecord:
    """Return a bad record with the number of its line, where finding out does not read too much.

    Args:
        bad: the record.
        source: that it stands in.
        reads_all: whether the source is read as a whole anyway, so that nothing is too much.
    """
    label, mark, byte = bad.location.rpartition(f":{BYTE_MARK}")
    file = next((file for file in source.files if mark and file.label == label), None)
    if file is None or (int(byte) > MAX_COUNTED_BYTES and not reads_all):
        return bad
    number, left = 1, int(byte)
    with source.filesystem.open(file.path, "rb") as stream:
        while left and (content := stream.read(min(left, _COUNTED_AT_ONCE_BYTES))):
            number += int(content.count(b"\n"))
            left -= len(content)
    return replace(bad, location=f"{label}:{number}")
