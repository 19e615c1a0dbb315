"""Documents out of files: one record a JSON line, a Parquet row, or a whole text file."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.reading.sources import ResolvedSource, SourceFile

_PARQUET_ROWS = 1024
_SHOWN_FIELDS = 12


@dataclass(frozen=True)
class Document:
    """The text of one record."""

    text: str
    place: str
    """`FILE:LINE`, from 1; a row of a Parquet file counts as a line."""


@dataclass(frozen=True)
class BadRecord:
    """A record that is no document."""

    place: str
    reason: str
    fields: tuple[str, ...] = ()
    """Of a record without the wanted field."""


class BadFileError(Exception):
    """A file that cannot be read on; the message is a sentence without the field of the manifest."""


def documents(source: ResolvedSource, text_field: str) -> Iterator[Document | BadRecord]:
    """All records of a source, file by file.

    Raises:
        BadFileError: a file breaks off, is not what its name says, or lacks the column.
    """
    for file in source.files:
        yield from _READERS[file.format](source.filesystem, file, text_field)


def json_lines(source: ResolvedSource) -> Iterator[tuple[str, Any] | BadRecord]:
    """(place, object) of each line of a source of JSON lines, in order; for data that is not plain text.

    Raises:
        BadFileError: a file breaks off or is of another type.
    """
    for file in source.files:
        if file.format != "jsonl":
            raise BadFileError(
                f"{file.label}: not JSON lines; accepted are .jsonl, .ndjson and .json, also .gz or .zst"
            )
        yield from _json_lines(source.filesystem, file)


def _json_lines(filesystem: Any, file: SourceFile) -> Iterator[tuple[str, Any] | BadRecord]:
    with _opened(filesystem, file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{file.label}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                yield BadRecord(place, f"not JSON ({first_line(error)})")
                continue
            if (b"\\ud" in line or b"\\uD" in line) and not _is_unicode(record):
                yield BadRecord(place, "not Unicode text (half of a surrogate pair)")
            elif isinstance(record, dict):
                yield place, record
            else:
                yield BadRecord(place, f"not a JSON object but {_kind(record)}")


def _jsonl_documents(filesystem: Any, file: SourceFile, text_field: str) -> Iterator[Document | BadRecord]:
    for item in _json_lines(filesystem, file):
        if isinstance(item, BadRecord):
            yield item
            continue
        place, record = item
        text = record.get(text_field)
        if isinstance(text, str):
            yield Document(text, place)
        elif text_field in record:
            yield BadRecord(place, f"field {text_field!r} is not a string but {_kind(text)}")
        else:
            yield BadRecord(place, f"no field {text_field!r}", tuple(record)[:_SHOWN_FIELDS])


def _parquet_documents(filesystem: Any, file: SourceFile, text_field: str) -> Iterator[Document | BadRecord]:
    import pyarrow
    import pyarrow.parquet

    try:
        with filesystem.open(file.path, "rb") as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            if text_field not in table.schema_arrow.names:
                yield BadRecord(
                    f"{file.label}:1",
                    f"no field {text_field!r}",
                    tuple(table.schema_arrow.names)[:_SHOWN_FIELDS],
                )
                return
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    place = f"{file.label}:{number}"
                    if isinstance(text, str):
                        yield Document(text, place)
                    else:
                        yield BadRecord(place, f"field {text_field!r} is not a string but {_kind(text)}")
    except (pyarrow.ArrowException, OSError) as error:
        raise BadFileError(
            f"{file.label}: not a readable Parquet file ({first_line(error)}); write it again"
        ) from error


def _text_documents(filesystem: Any, file: SourceFile, _text_field: str) -> Iterator[Document | BadRecord]:
    """A text file is one document."""
    with _opened(filesystem, file) as stream:
        content = stream.read()
    try:
        yield Document(content.decode("utf-8-sig"), f"{file.label}:1")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield BadRecord(f"{file.label}:{line}", f"not UTF-8 text (byte {content[error.start]:#04x})")


_READERS = {"jsonl": _jsonl_documents, "parquet": _parquet_documents, "text": _text_documents}


class _ZstdFrames(io.RawIOBase):
    """Zstandard frames one after the other; unlike the library's reader it tells a file that breaks off."""

    def __init__(self, raw: Any) -> None:
        super().__init__()
        self._raw = raw
        self._frame: Any = None
        self._unpacked = b""
        self._packed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._unpacked:
            packed = self._packed or self._raw.read(256 * 1024)
            self._packed = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._unpacked = self._frame.decompress(packed)
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._unpacked))
        buffer[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count


@contextmanager
def _opened(filesystem: Any, file: SourceFile) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file."""
    import zstandard

    try:
        with filesystem.open(file.path, "rb") as raw:
            if file.compression == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=raw))
            elif file.compression == ".zst":
                yield io.BufferedReader(_ZstdFrames(raw), buffer_size=1024 * 1024)
            else:
                yield raw
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise BadFileError(
            f"{file.label}: breaks off or is damaged ({type(error).__name__}: {first_line(error)}); copy it again"
        ) from error


def _is_unicode(record: Any) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
