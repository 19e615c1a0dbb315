"""Reads documents from files. A record is a JSON line, an element of a JSON array, a row of a Parquet file, or a whole
text file.

A line ends with the byte `\\n` alone. Other characters that Unicode calls line breaks (U+2028, U+0085, form feed) are
content: JSON allows them inside a string, and text scraped from the web has them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from dapt_contract.base import JsonObject
from dapt_contract.sentences import shortened
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.reading.file_parts import BLOCK_RECORDS, FilePart
from dapt_trainer.data.reading.json_arrays import elements_of, has_array
from dapt_trainer.data.reading.parquet_columns import TooLong, text_rows
from dapt_trainer.data.reading.sources import ResolvedSource, SourceFile
from dapt_trainer.data.reading.unpacked import (
    MAX_LINE_BYTES,
    BadFileError,
    lines_of,
    open_unpacked,
    other_encoding,
    other_format,
    refuse_other_text,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = [
    "BadFileError",
    "BadRecord",
    "Document",
    "is_unicode",
    "json_type",
    "open_unpacked",
    "read_documents",
    "read_file",
    "read_json_lines",
    "strict_json",
]

BYTE_MARK = "byte "
"""Stands in a location before the byte that a line begins at, where its number is not known."""
TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB"
_MAX_SHOWN_FIELDS = 12
_MAX_NAME_CHARACTERS = 60
_MAX_EMPTY_LINES = 100_000
"""Reading them yields nothing, so neither progress nor a stop would be seen meanwhile."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_DIGITS_MESSAGE = "Exceeds the limit"
"""Beginning of Python's message about an integer of thousands of digits, which goes on about its own settings."""


@dataclass(frozen=True)
class Document:
    """Holds the text of one record."""

    text: str
    location: str
    """`FILE:LINE`, from 1; a row of a Parquet file and an element of an array count as a line."""


@dataclass(frozen=True)
class BadRecord:
    """Says why a record is not a document."""

    location: str
    """`FILE:LINE`, as of a document."""
    reason: str
    fields: tuple[str, ...] = ()
    """Names of the record's fields where the text field is missing."""


def read_documents(source: ResolvedSource, text_field: str) -> Iterator[Document | BadRecord]:
    """Yield all records of a source, file by file.

    Raises:
        BadFileError: a file breaks off, is not what its name says, or lacks the column.
    """
    yield from read_parts(source, map(FilePart, source.files), text_field)


def read_file(
    filesystem: AbstractFileSystem, file: SourceFile, text_field: str
) -> Iterator[Document | BadRecord]:
    """Yield all records of one file; raises as `read_documents`."""
    return read_part(filesystem, FilePart(file), text_field)


def read_part(
    filesystem: AbstractFileSystem, part: FilePart, text_field: str
) -> Iterator[Document | BadRecord]:
    """Yield the records of a part of a file; raises as `read_documents`."""
    return _READERS[part.file.format](filesystem, part, text_field)


def read_parts(
    source: ResolvedSource, parts: Iterable[FilePart], text_field: str
) -> Iterator[Document | BadRecord]:
    """Yield the records of some parts of a source's files, in their order; raises as `read_documents`."""
    for part in parts:
        yield from read_part(source.filesystem, part, text_field)


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
        yield from _json_lines(source.filesystem, FilePart(file))


def read_array(
    filesystem: AbstractFileSystem, part: FilePart, text_field: str | None = None
) -> Iterator[tuple[str, JsonObject] | BadRecord]:
    """Yield (location, object) of the elements of a file that is one JSON array.

    Args:
        filesystem: of the file.
        part: of the file that is read.
        text_field: the one field that matters; None: all do.

    Raises:
        BadFileError: the file is damaged or of another type.
    """
    file = part.file
    with open_unpacked(filesystem, file) as stream:
        for number, element in enumerate(elements_of(stream, file), start=1):
            if not part.is_read((number - 1) // BLOCK_RECORDS):
                continue
            location = f"{file.label}:{number}"
            record = _parsed(element, text_field)
            yield (location, record) if isinstance(record, dict) else _no_object(location, record)


def _json_lines(
    filesystem: AbstractFileSystem, part: FilePart, text_field: str | None = None
) -> Iterator[tuple[str, JsonObject] | BadRecord]:
    file = part.file
    with open_unpacked(filesystem, file) as stream:
        is_first, num_empty = part.first_byte == 0, 0
        for number, line in _lines(stream, part):
            location = f"{file.label}:{number}"
            if line is None:
                yield BadRecord(location, TOO_LONG)
                continue
            if number == 1:
                refuse_other_text(file, line)
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.isspace() or not line:
                num_empty += 1
                if num_empty > _MAX_EMPTY_LINES:
                    raise BadFileError(
                        f"{file.label}: has more than {_MAX_EMPTY_LINES:,} empty lines in a row; remove them"
                    )
                continue
            num_empty = 0
            record = _parsed(line, text_field)
            is_first, was_first = False, is_first
            if isinstance(record, dict):
                yield location, record
                continue
            if was_first:
                _refuse_other_layout(file, line, record)
            yield _no_object(location, record)


def _refuse_other_layout(file: SourceFile, line: bytes, record: object) -> None:
    """Refuse a file whose first line shows that its records are not one a line.

    Raises:
        BadFileError: it is one array under another name, or its records go over several lines.
    """
    if b"}\r" in line.rstrip(b"\r\n"):
        raise BadFileError(
            f"{file.label}: its lines end with carriage returns; let them end with line feeds (tr '\\r' '\\n')"
        )
    if _begins_array(line, record):
        raise BadFileError(
            f"{file.label}: one JSON array, not one record a line; name it .json, or write each record on a line "
            "of its own (jq -c '.[]')"
        )
    if line.strip() == b"{":
        raise BadFileError(
            f"{file.label}: its first record goes over several lines; write each record on a line of its own (jq -c .)"
        )


def _no_object(location: str, record: object) -> BadRecord:
    """Return what is wrong with a value that is no object, or with the reason for having none."""
    is_error = isinstance(record, _NoJsonError)
    return BadRecord(location, str(record) if is_error else f"not a JSON object but {json_type(record)}")


def _lines(stream: BinaryIO, part: FilePart) -> Iterator[tuple[int | str, bytes | None]]:
    """Return the lines of a part with their numbers; in a range that does not begin the file, with their bytes."""
    if part.end_byte is not None:
        return _lines_of_range(stream, part, part.end_byte)
    lines = enumerate(lines_of(stream, part.file.label), start=1)
    if part.num_passes == 1:
        return lines
    return ((number, line) for number, line in lines if part.is_read((number - 1) // BLOCK_RECORDS))


def _lines_of_range(
    stream: BinaryIO, part: FilePart, end_byte: int
) -> Iterator[tuple[int | str, bytes | None]]:
    if part.first_byte:
        # Up to the end of the line before, which may end right here.
        stream.seek(part.first_byte - 1)
        next(lines_of(stream, part.file.label), None)
    position = stream.tell()
    lines = lines_of(stream, part.file.label)
    while position < end_byte and (line := next(lines, b"")) != b"":
        yield (f"{BYTE_MARK}{position}" if position else 1), line
        position = stream.tell() if line is None else position + len(line)


class _NoJsonError(Exception):
    """Says why a line is not a JSON value."""


class _RepeatedFieldError(ValueError):
    """Reports that an object has a field twice: JSON's readers disagree on which of the two counts."""

    def __init__(self, name: str) -> None:
        super().__init__(f"has the field {shortened(name, _MAX_NAME_CHARACTERS)!r} twice")
        self.name = name


def _unambiguous(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _RepeatedFieldError(next(name for name, count in counts.items() if count > 1))
    return fields


_decode_strictly = json.JSONDecoder(object_pairs_hook=_unambiguous).decode
"""Costs less than 3 % of reading a record; `json.loads` would make such a decoder for each."""


def strict_json(text: str) -> object:
    """Return the value of a JSON text none of whose objects has a field twice.

    Raises:
        ValueError: it has none.
        RecursionError: it is nested too deeply.
    """
    return _decode_strictly(text)


def _value_of(line: bytes, text_field: str | None) -> object:
    # Strictly: `json.loads` would let halves of surrogate pairs pass, as CESU-8 writes them.
    text = line.decode("utf-8")
    try:
        return _decode_strictly(text)
    except _RepeatedFieldError as error:
        if text_field in (None, error.name):
            raise
        # Of a corpus one field is read: another one that stands there twice does no harm.
        return json.loads(text)


def _parsed(line: bytes, text_field: str | None) -> object:
    """Return the value of a line; the reason, as an exception that is not raised, where it has none.

    Args:
        line: of a file, or an element of an array.
        text_field: the one field that matters; None: all do.
    """
    try:
        record = _value_of(line, text_field)
    except _RepeatedFieldError as error:
        return _NoJsonError(str(error))
    except RecursionError:
        return _NoJsonError("nested too deeply")
    except UnicodeDecodeError as error:
        return _NoJsonError(f"not UTF-8 text (byte {line[error.start]:#04x} at byte {error.start + 1})")
    except ValueError as error:
        reason = first_line(error)
        if reason.startswith(_MAX_DIGITS_MESSAGE):
            return _NoJsonError("a number of thousands of digits")
        return _NoJsonError(f"not JSON ({reason})")
    # Only an escape can spell half of a surrogate pair, and encoding every record to find one is slow.
    if (b"\\ud" in line or b"\\uD" in line) and not is_unicode(record):
        return _NoJsonError("not Unicode text (half of a surrogate pair)")
    return record


def _begins_array(line: bytes, record: object) -> bool:
    """Return whether a first line, with its value or the reason for having none, is the beginning of an array."""
    if isinstance(record, list):
        return any(isinstance(item, dict) for item in record)
    return line.lstrip().startswith(b"[")


def _jsonl_documents(
    filesystem: AbstractFileSystem, part: FilePart, text_field: str
) -> Iterator[Document | BadRecord]:
    is_array = part.end_byte is None and has_array(filesystem, part.file)
    read = read_array if is_array else _json_lines
    for line in read(filesystem, part, text_field):
        if isinstance(line, BadRecord):
            yield line
            continue
        location, record = line
        text = record.get(text_field)
        if isinstance(text, str):
            yield Document(text, location)
        elif text_field in record:
            yield BadRecord(location, f"field {text_field!r} is not a string but {json_type(text)}")
        else:
            yield BadRecord(location, f"no field {text_field!r}", tuple(record)[:_MAX_SHOWN_FIELDS])


def _parquet_documents(
    filesystem: AbstractFileSystem, part: FilePart, text_field: str
) -> Iterator[Document | BadRecord]:
    for number, text in text_rows(filesystem, part, text_field):
        location = f"{part.file.label}:{number}"
        if isinstance(text, str):
            yield Document(text, location)
        elif isinstance(text, bytes):
            yield BadRecord(location, f"field {text_field!r} is not UTF-8 text")
        elif isinstance(text, TooLong):
            yield BadRecord(location, TOO_LONG)
        else:
            yield BadRecord(location, f"field {text_field!r} is not a string but {json_type(text)}")


def _text_documents(
    filesystem: AbstractFileSystem, part: FilePart, _text_field: str
) -> Iterator[Document | BadRecord]:
    """Yield the whole text file as one document."""
    file = part.file
    with open_unpacked(filesystem, file) as stream:
        content = stream.read(MAX_LINE_BYTES + 1)
    reason = _no_text(content)
    if reason:
        yield BadRecord(f"{file.label}:1", reason)
        return
    try:
        yield Document(content.removeprefix(_BYTE_ORDER_MARK).decode("utf-8"), f"{file.label}:1")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield BadRecord(f"{file.label}:{line}", f"not UTF-8 text (byte {content[error.start]:#04x})")


def _no_text(content: bytes) -> str:
    """Return why a whole file is no text, by its size and its beginning; empty where it may be one."""
    if len(content) > MAX_LINE_BYTES:
        return TOO_LONG
    if format_name := other_format(content[:1024]):
        return f"not text but {format_name}"
    if encoding := other_encoding(content[:1024]):
        return f"not UTF-8 but {encoding} text, or no text"
    return ""


_READERS = {"jsonl": _jsonl_documents, "parquet": _parquet_documents, "text": _text_documents}


def is_unicode(record: object) -> bool:
    """Return whether all texts of a JSON value can be written as UTF-8."""
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def json_type(value: object) -> str:
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
