"""Reads records that are not plain text, whole: lines of JSON, elements of a JSON array, rows of a Parquet file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import JsonValue

from dapt_contract.base import JsonObject
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.reading.documents import (
    BadFileError,
    BadRecord,
    is_unicode,
    json_type,
    open_unpacked,
    read_json_lines,
)
from dapt_trainer.data.reading.sources import ResolvedSource, SourceFile

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ACCEPTED_RECORDS = (
    ".jsonl, .ndjson and .json (one record a line, or an array), also .gz or .zst, and .parquet"
)
_PARQUET_ROWS = 256


def read_records(source: ResolvedSource) -> Iterator[tuple[str, JsonObject] | BadRecord]:
    """Yield (location, object) of each record of a source, in order.

    A location is `FILE:LINE`; an element of an array and a row of a Parquet file count as a line.

    Raises:
        BadFileError: a file breaks off, is damaged, or is of another type.
    """
    for file in source.files:
        if file.format == "parquet":
            yield from _parquet_rows(source.filesystem, file)
        elif file.format != "jsonl":
            raise BadFileError(f"{file.label}: not a file of records; accepted are {ACCEPTED_RECORDS}")
        elif _is_array(source.filesystem, file):
            yield from _array_elements(source.filesystem, file)
        else:
            yield from read_json_lines(replace(source, files=(file,)))


def _is_array(filesystem: AbstractFileSystem, file: SourceFile) -> bool:
    """Return whether a file is one JSON array: it begins with a bracket, and its first line is no array of its own."""
    with open_unpacked(filesystem, file) as stream:
        for line in stream:
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                continue
            if not text.startswith(b"["):
                return False
            # A line that is a whole array, with lines after it, is a bad record of JSON lines.
            return not text.endswith(b"]") or not any(rest.strip() for rest in stream)
    return False


def _array_elements(
    filesystem: AbstractFileSystem, file: SourceFile
) -> Iterator[tuple[str, JsonObject] | BadRecord]:
    with open_unpacked(filesystem, file) as stream:
        content = stream.read()
    try:
        elements = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(
            f"{file.label}: not a readable JSON array ({first_line(error)}); write it again"
        ) from error
    for number, element in enumerate(elements, start=1):
        location = f"{file.label}:{number}"
        if isinstance(element, dict) and not is_unicode(element):
            yield BadRecord(location, "not Unicode text (half of a surrogate pair)")
        elif isinstance(element, dict):
            yield location, element
        else:
            yield BadRecord(location, f"not a JSON object but {json_type(element)}")


def _parquet_rows(
    filesystem: AbstractFileSystem, file: SourceFile
) -> Iterator[tuple[str, JsonObject] | BadRecord]:
    import pyarrow.parquet

    number = 0
    try:
        with filesystem.open(file.path, "rb") as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield (
                        f"{file.label}:{number}",
                        {str(name): _json_value(value) for name, value in row.items()},
                    )
    except Exception as error:  # damage shows in as many ways as the library has decoders
        raise BadFileError(
            f"{file.label}: not a readable Parquet file after row {number} ({first_line(error)}); write it again"
        ) from error


def _json_value(value: object) -> JsonValue:
    """Return what JSON would have for a value of a Parquet column."""
    if isinstance(value, dict):
        return {str(name): _json_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(part) for part in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if isinstance(value, str | int | float | None) else str(value)
