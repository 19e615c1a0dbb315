"""Reads records that are not plain text, whole: lines of JSON, elements of a JSON array, rows of a Parquet file."""

from __future__ import annotations

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
    read_array,
    read_json_lines,
)
from dapt_trainer.data.reading.file_parts import FilePart
from dapt_trainer.data.reading.json_arrays import has_array
from dapt_trainer.data.reading.sources import ResolvedSource, SourceFile
from dapt_trainer.data.reading.unpacked import refuse_pointer

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow import RecordBatch

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
        elif has_array(source.filesystem, file, needs_name=False):
            yield from read_array(source.filesystem, FilePart(file))
        else:
            yield from read_json_lines(replace(source, files=(file,)))


def _parquet_rows(
    filesystem: AbstractFileSystem, file: SourceFile
) -> Iterator[tuple[str, JsonObject] | BadRecord]:
    import pyarrow.parquet

    number = 0
    try:
        refuse_pointer(filesystem, file)
        with filesystem.open(file.path, "rb") as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for row in _rows_of(batch):
                    number += 1
                    location = f"{file.label}:{number}"
                    if row is None:
                        yield BadRecord(location, "holds text that is not UTF-8")
                        continue
                    # Nulls inside of a column only fill what other rows have: JSON would not have these fields.
                    yield location, {str(name): _json_value(value) for name, value in row.items()}
    except BadFileError:
        raise
    except Exception as error:  # damage shows in as many ways as the library has decoders
        raise BadFileError(
            f"{file.label}: not a readable Parquet file after row {number} ({first_line(error)}); write it again"
        ) from error


def _rows_of(batch: RecordBatch) -> list[dict[str, object] | None]:
    """Return the rows of a batch by their columns; None for one with text that is not UTF-8."""
    try:
        rows: list[dict[str, object] | None] = batch.to_pylist(maps_as_pydicts="strict")
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        return [row for index in range(batch.num_rows) for row in _rows_of(batch.slice(index, 1))]
    return rows


def _json_value(value: object) -> JsonValue:
    """Return what JSON would have for a value of a Parquet column."""
    if isinstance(value, dict):
        return {str(name): _json_value(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_json_value(part) for part in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return _text_or_bytes(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _text_or_bytes(value: bytes) -> JsonValue:
    """Return the text of a binary value, which some writers make of strings; an object where it is none."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes": len(value)}
