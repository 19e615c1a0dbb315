"""Records of local tuning data are estimated from the beginning of its files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dapt_operator.cli.inputs import file_beginnings
from dapt_operator.cli.inputs.record_counts import tuning_size

LINE = json.dumps({"prompt": "q" * 40, "response": "a" * 50}) + "\n"


def test_lines_of_a_small_file_are_counted(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(LINE * 120 + "\n\n")
    size = tuning_size((f"file://{tmp_path}/s.jsonl",))
    assert (size.records, size.tokens) == (120, round((len(LINE) * 120 + 2) / 4))


def test_beginning_of_a_large_file_stands_for_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_beginnings, "SAMPLE_BYTES", 10 * len(LINE))
    (tmp_path / "s.jsonl").write_text(LINE * 1000)
    records = tuning_size((f"file://{tmp_path}/*.jsonl",)).records
    assert records is not None
    assert abs(records - 1000) <= 100


@pytest.mark.parametrize("indent", [None, 1])
def test_items_of_one_array_are_counted(tmp_path: Path, indent: int | None) -> None:
    records = [{"instruction": "ü" * 40, "output": "[1, {}]"}] * 120
    (tmp_path / "s.json").write_text(json.dumps(records, indent=indent, ensure_ascii=False))
    assert tuning_size((f"file://{tmp_path}/s.json",)).records == 120


def test_beginning_of_a_large_array_stands_for_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_beginnings, "SAMPLE_BYTES", 2000)
    (tmp_path / "s.json").write_text(json.dumps([{"instruction": "q" * 60, "output": "a"}] * 1000))
    records = tuning_size((f"file://{tmp_path}/s.json",)).records
    assert records is not None
    assert abs(records - 1000) <= 20


def test_compressed_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl.gz").write_bytes(gzip.compress((LINE * 300).encode()))
    assert tuning_size((f"file://{tmp_path}/s.jsonl.gz",)).records == 300


@pytest.mark.parametrize("name", ["s.parquet", "s.jsonl.zst", "s.json"])
def test_what_shows_no_lines_is_counted_by_an_assumed_size(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[" + b"x" * 100_000)
    records = tuning_size((f"file://{tmp_path}/{name}",)).records
    assert records is not None
    assert 90 <= records <= 400


def test_damaged_gzip_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl.gz").write_bytes(b"not gzip at all" * 10)
    assert tuning_size((f"file://{tmp_path}/s.jsonl.gz",)).records == 1


def test_what_is_not_here_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(LINE)
    here = f"file://{tmp_path}/s.jsonl"
    for address in ("s3://b/s.jsonl", f"file://{tmp_path}/none.jsonl"):
        assert tuning_size((here, address)).records is None
    assert tuning_size(()).records is None
