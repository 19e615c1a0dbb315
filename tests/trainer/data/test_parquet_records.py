"""Rows of tables become what JSON would have: no base64, no nulls that only fill a column, no lists for maps."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dapt_trainer.data.reading.records import BadFileError, BadRecord, read_records
from dapt_trainer.data.reading.sources import resolve


def rows(path: Path, table: pyarrow.Table) -> list[object]:
    """The records, and the reasons of the bad ones."""
    pyarrow.parquet.write_table(table, path)
    records = read_records(resolve(f"file://{path}", "f"))
    return [record.reason if isinstance(record, BadRecord) else record[1] for record in records]


def test_binary_text_is_text_and_other_bytes_are_none(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": [b"caf\xc3\xa9", b"\xff\xd8\xff"]})
    assert rows(tmp_path / "a.parquet", table) == [{"prompt": "café"}, {"prompt": {"bytes": 3}}]


def test_nulls_that_fill_what_other_rows_have_are_left_out(tmp_path: Path) -> None:
    calls = [
        [{"name": "f", "arguments": {"city": "Oslo"}}],
        [{"name": "g", "arguments": {"code": "A00"}}],
        None,
    ]
    assert rows(tmp_path / "a.parquet", pyarrow.table({"calls": calls})) == [
        {"calls": [{"name": "f", "arguments": {"city": "Oslo"}}]},
        {"calls": [{"name": "g", "arguments": {"code": "A00"}}]},
        {"calls": None},
    ]


def test_a_map_is_an_object(tmp_path: Path) -> None:
    column = pyarrow.array([[("A", "a"), ("B", "b")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    assert rows(tmp_path / "a.parquet", pyarrow.table({"options": column})) == [
        {"options": {"A": "a", "B": "b"}}
    ]


def test_a_row_that_is_not_utf8_costs_itself_alone(tmp_path: Path) -> None:
    offsets, content = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xffc")
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, content])
    assert rows(tmp_path / "a.parquet", pyarrow.table({"prompt": column})) == [
        {"prompt": "a"},
        "holds text that is not UTF-8",
        {"prompt": "c"},
    ]


def test_a_pointer_is_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n")
    with pytest.raises(BadFileError, match=r"a\.parquet: a pointer of git-lfs, not the content; fetch it"):
        list(read_records(resolve(f"file://{path}", "f")))
