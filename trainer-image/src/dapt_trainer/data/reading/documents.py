"""Reads documents from files. A record is a JSON line, a row of a Parquet file, or a whole text file."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from dapt_contract.base import JsonObject
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.reading.sources import ResolvedSource, SourceFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem
    from zstandard import ZstdDecompressionObj

_PARQUET_ROWS = 1024
_MAX_SHOWN_FIELDS = 12


@dataclass(frozen=True)
class Document:
    """Holds the text of one record."""

    text: str
    location: str
    """`FILE:LINE`, from 1; a row of a Parquet file counts as a line."""


@dataclass(frozen=True)
class BadRecord:
    """Says why a record is not a document."""

    location: str
    """`FILE:LINE`, as of a document."""
    reason: str
    fields: tuple[str, ...] = ()
    """Names of the record's fields where the text field is missing."""


class BadFileError(Exception):
    """Ends the reading of a file; the message is a sentence without the field of the manifest."""


def read_documents(source: ResolvedSource, text_field: str) -> Iterator[Document | BadRecord]:
    """Yield all records of a source, file by file.

    Raises:
        BadFileError: a file breaks off, is not what its name says, or lacks the column.
    """
    for file in source.files:
        yield from _READERS[file.format](source.filesystem, file, text_field)


def read_json_lines(source: ResolvedSource) -> Iterator[tuple[str, JsonObject] | BadRecord]:
    """Yield (location, object) of each line of a source of JSON lines, in order; for data that is not plain text.

    Raises:
        BadFileError: a file breaks off or is of another type.
    """
    for file in source.files:
        if file.format != "jsonl":
            raise BadFileError(
                f"{file.label}: not JSON lines; accepted are .jsonl, .ndjson and .json, also .gz or .zst"
            )
        yield from _json_lines_of_file(source.filesystem, file)


def _json_lines_of_file(
    filesystem: AbstractFileSystem, file: SourceFile
) -> Iterator[tuple[str, JsonObject] | BadRecord]:
    with _open_unpacked(filesystem, file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            location = f"{file.label}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                yield BadRecord(location, f"not JSON ({first_line(error)})")
                continue
            # Only an escape can spell half of a surrogate pair, and encoding every record to find one is slow.
            if (b"\\ud" in line or b"\\uD" in line) and not _is_unicode(record):
                yield BadRecord(location, "not Unicode text (half of a surrogate pair)")
            elif isinstance(record, dict):
                yield location, record
            else:
                yield BadRecord(location, f"not a JSON object but {_json_type(record)}")


def _jsonl_documents(
    filesystem: AbstractFileSystem, file: SourceFile, text_field: str
) -> Iterator[Document | BadRecord]:
    for line in _json_lines_of_file(filesystem, file):
        if isinstance(line, BadRecord):
            yield line
            continue
        location, record = line
        text = record.get(text_field)
        if isinstance(text, str):
            yield Document(text, location)
        elif text_field in record:
            yield BadRecord(location, f"field {text_field!r} is not a string but {_json_type(text)}")
        else:
            yield BadRecord(location, f"no field {text_field!r}", tuple(record)[:_MAX_SHOWN_FIELDS])


def _parquet_documents(
    filesystem: AbstractFileSystem, file: SourceFile, text_field: str
) -> Iterator[Document | BadRecord]:
    import pyarrow
    import pyarrow.parquet

    try:
        with filesystem.open(file.path, "rb") as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            if text_field not in table.schema_arrow.names:
                yield BadRecord(
                    f"{file.label}:1",
                    f"no field {text_field!r}",
                    tuple(table.schema_arrow.names)[:_MAX_SHOWN_FIELDS],
                )
                return
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    location = f"{file.label}:{number}"
                    if isinstance(text, str):
                        yield Document(text, location)
                    else:
                        yield BadRecord(
                            location, f"field {text_field!r} is not a string but {_json_type(text)}"
                        )
    except (pyarrow.ArrowException, OSError) as error:
        raise BadFileError(
            f"{file.label}: not a readable Parquet file ({first_line(error)}); write it again"
        ) from error


def _text_documents(
    filesystem: AbstractFileSystem, file: SourceFile, _text_field: str
) -> Iterator[Document | BadRecord]:
    """Yield the whole text file as one document."""
    with _open_unpacked(filesystem, file) as stream:
        content = stream.read()
    try:
        # A byte order mark is no part of the text.
        yield Document(content.decode("utf-8-sig"), f"{file.label}:1")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield BadRecord(f"{file.label}:{line}", f"not UTF-8 text (byte {content[error.start]:#04x})")


_READERS = {"jsonl": _jsonl_documents, "parquet": _parquet_documents, "text": _text_documents}


class _ZstdFrames(io.RawIOBase):
    """Reads Zstandard frames one after the other and raises for a file that breaks off.

    The library's own stream reader ends without an error when the last frame is not complete, so a copy that was cut
    off would pass for the whole file.
    """

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw = raw
        self._frame: ZstdDecompressionObj | None = None
        self._unpacked = b""
        self._packed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        import zstandard

        while not self._unpacked:
            packed = self._packed or self._raw.read(256 * 1024)
            self._packed = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            if self._frame is None:
                # zstd --long=31 writes windows of 2 GiB, which the library refuses by default.
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._unpacked = self._frame.decompress(packed)
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame = None
        target = memoryview(buffer)
        count = min(len(target), len(self._unpacked))
        target[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count


@contextmanager
def _open_unpacked(filesystem: AbstractFileSystem, file: SourceFile) -> Iterator[BinaryIO]:
    """Open a file of a source for reading its unpacked bytes."""
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


def _is_unicode(record: object) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json_type(value: object) -> str:
    """Return the name of a value's type in JSON's words, with its article."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
