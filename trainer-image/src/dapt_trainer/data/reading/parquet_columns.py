"""Reads a column of text from Parquet files, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.reading.file_parts import BLOCK_RECORDS, FilePart
from dapt_trainer.data.reading.parquet_pages import group_plan
from dapt_trainer.data.reading.sources import SourceFile
from dapt_trainer.data.reading.unpacked import MAX_LINE_BYTES, BadFileError, UnpackedLimit, refuse_pointer

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow import Array, DataType
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS = 1024
_MAX_SHOWN_COLUMNS = 12


def text_rows(filesystem: AbstractFileSystem, part: FilePart, column: str) -> Iterator[tuple[int, object]]:
    """Yield (number from 1, value) of the rows of a part: a text, bytes that are no UTF-8, or what stands for a null.

    Raises:
        BadFileError: the file is damaged, lacks the column, or has something else than text in it.
    """
    import pyarrow.parquet

    try:
        refuse_pointer(filesystem, part.file)
        with filesystem.open(part.file.path, "rb") as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            _check_column(table, part.file, column)
            limit = UnpackedLimit(part.file)
            for number, text in _rows(stream, table, part, column):
                limit.add(1 + (len(text) if isinstance(text, str | bytes) else 0))
                is_long = isinstance(text, str | bytes) and len(text) > MAX_LINE_BYTES
                yield number, TooLong() if is_long else text
    except BadFileError:
        raise
    except Exception as error:  # damage shows in as many ways as the library has decoders
        raise BadFileError(
            f"{part.file.label}: not a readable Parquet file ({first_line(error)}); write it again"
        ) from error


class TooLong:
    """Stands for a text that is longer than a record may be."""


def _rows(stream: BinaryIO, table: ParquetFile, part: FilePart, column: str) -> Iterator[tuple[int, object]]:
    # Whole row groups are left out where there are enough of them, since they need not be read.
    has_many_groups = table.num_row_groups >= part.num_passes
    leaves = [index for index in range(len(table.schema)) if table.schema.column(index).path == column]
    number = 0
    for group in range(table.num_row_groups):
        if has_many_groups and not part.is_read(group):
            number += table.metadata.row_group(group).num_rows
            continue
        plan = group_plan(stream, table.metadata, group, leaves, label=part.file.label, max_rows=_BATCH_ROWS)
        for batch in table.iter_batches(plan.rows, row_groups=[group], columns=[column]):
            for text in _texts(batch.column(0)):
                number += 1
                if has_many_groups or part.is_read((number - 1) // BLOCK_RECORDS):
                    yield number, text


def _check_column(table: ParquetFile, file: SourceFile, column: str) -> None:
    """Refuse a file without the column, or with one that holds no text: every row of it would be lost."""
    names = table.schema_arrow.names
    if column not in names:
        shown = ", ".join(names[:_MAX_SHOWN_COLUMNS]) or "none"
        raise BadFileError(
            f"{file.label}: no column {column!r}, its columns are {shown}; name the one that holds the text as "
            "textField, or remove the file"
        )
    if names.count(column) > 1:
        raise BadFileError(f"{file.label}: has {names.count(column)} columns {column!r}; rename all but one")
    column_type = table.schema_arrow.field(names.index(column)).type
    if not _is_text(column_type):
        raise BadFileError(
            f"{file.label}: column {column!r} holds {column_type}, not text; name the one that holds the text as "
            "textField, or write the column as strings"
        )


def _is_text(column_type: DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(column_type):
        column_type = column_type.value_type
    return bool(
        types.is_string(column_type)
        or types.is_large_string(column_type)
        or types.is_string_view(column_type)
    )


def _texts(column: Array) -> list[object]:
    """Return the values of a column of text; bytes where they are not UTF-8, which Parquet does not check."""
    import pyarrow

    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pyarrow.binary()).to_pylist()
        values = [_decoded(value) if isinstance(value, bytes) else value for value in values]
    return values


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
