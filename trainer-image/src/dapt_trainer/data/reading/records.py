"""Reads records that are not plain text, whole: lines of JSON, elements of a JSON array, rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, BinaryIO

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
from dapt_trainer.data.reading.parquet_pages import group_plan
from dapt_trainer.data.reading.sources import ResolvedSource, SourceFile
from dapt_trainer.data.reading.unpacked import MAX_LINE_BYTES, UnpackedLimit, refuse_pointer

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow import Array, RecordBatch
    from pyarrow.parquet import ParquetFile

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
            limit, leaves = UnpackedLimit(file), range(len(table.schema))
            for group in range(table.num_row_groups):
                plan = group_plan(
                    stream, table.metadata, group, leaves, label=file.label, max_rows=_PARQUET_ROWS
                )
                reader = _with_dictionaries(stream, table) if plan.keeps_dictionaries else table
                for batch in reader.iter_batches(batch_size=plan.rows, row_groups=[group]):
                    limit.add(sum(map(_unpacked_bytes, batch.columns)))
                    for row in _rows_of(batch):
                        number += 1
                        location = f"{file.label}:{number}"
                        if isinstance(row, str):
                            yield BadRecord(location, row)
                            continue
                        # Nulls inside of a column only fill what other rows have: JSON would not have these fields.
                        yield location, {str(name): _json_value(value) for name, value in row.items()}
    except BadFileError:
        raise
    except Exception as error:  # damage shows in as many ways as the library has decoders
        raise BadFileError(
            f"{file.label}: not a readable Parquet file after row {number} ({first_line(error)}); write it again"
        ) from error


def _with_dictionaries(stream: BinaryIO, table: ParquetFile) -> ParquetFile:
    """Open a file so that a text which is repeated is in memory once; reading is slower where few are."""
    import pyarrow.parquet

    columns = (table.schema.column(index) for index in range(len(table.schema)))
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    return pyarrow.parquet.ParquetFile(stream, read_dictionary=texts)


def _rows_of(batch: RecordBatch) -> list[dict[str, object] | str]:
    """Return the rows of a batch by their columns; why there is none instead of a bad row."""
    if batch.num_rows > 1 and sum(map(_unpacked_bytes, batch.columns)) > MAX_LINE_BYTES:
        half = batch.num_rows // 2
        return _rows_of(batch.slice(0, half)) + _rows_of(batch.slice(half))
    if sum(map(_unpacked_bytes, batch.columns)) > MAX_LINE_BYTES:
        return [f"longer than {MAX_LINE_BYTES >> 20} MiB"]
    try:
        rows: list[dict[str, object] | str] = batch.to_pylist(maps_as_pydicts="strict")
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return ["holds text that is not UTF-8"]
        return [row for index in range(batch.num_rows) for row in _rows_of(batch.slice(index, 1))]
    return rows


def _unpacked_bytes(column: Array) -> int:
    """Return how many bytes the values of a column have when each is written out, with one for each list and value."""
    import pyarrow
    from pyarrow import compute, types

    kind = column.type
    if types.is_dictionary(kind):
        lengths = compute.binary_length(column.dictionary)
        return int(compute.sum(lengths.take(column.indices)).as_py() or 0) + len(column)
    if types.is_struct(kind):
        return len(column) + sum(map(_unpacked_bytes, column.flatten()))
    if types.is_map(kind):
        # A map's own `flatten` does not know that the column may be a slice.
        column = column.cast(
            pyarrow.list_(pyarrow.struct([("key", kind.key_type), ("value", kind.item_type)]))
        )
    if (
        types.is_map(kind)
        or types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
    ):
        return len(column) + _unpacked_bytes(column.flatten())
    return len(column) + int(column.nbytes)


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
