"""Files of tuning data and evaluation items that are corrected in place count as an edit in a local run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dapt_operator.cluster.local.source_contents import SourceContents, fingerprint


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "text of [mine]"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    return folder


def aged(path: Path) -> None:
    """Another modification time, whatever the resolution of the clock."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def test_equal_files_have_equal_fingerprints(data: Path) -> None:
    source = f"file://{data}/a.jsonl"
    assert fingerprint(source) == fingerprint(source)


def test_a_corrected_file_has_another_fingerprint(data: Path) -> None:
    path = data / "a.jsonl"
    before = fingerprint(f"file://{path}")
    path.write_text('{"prompt": "a", "response": "c"}\n')  # as many bytes
    aged(path)
    assert fingerprint(f"file://{path}") != before


@pytest.mark.parametrize("pattern", ["", "/*.jsonl"])
def test_a_file_that_is_added_or_removed_is_noticed(data: Path, pattern: str) -> None:
    source = f"file://{data}{pattern}"
    before = fingerprint(source)
    (data / "b.jsonl").write_text("{}\n")
    added = fingerprint(source)
    assert added != before
    (data / "b.jsonl").unlink()
    assert fingerprint(source) == before


def test_links_are_followed_to_what_they_name(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(data / "a.jsonl")
    source = f"file://{tmp_path}/link.jsonl"
    before = fingerprint(source)
    aged(data / "a.jsonl")
    assert fingerprint(source) != before


def test_a_missing_file_is_another_content_than_the_file(data: Path) -> None:
    source = f"file://{data}/b.jsonl"
    before = fingerprint(source)
    (data / "b.jsonl").write_text("")
    assert fingerprint(source) != before


def test_only_what_may_change_after_prepare_has_begun_is_fingerprinted(data: Path) -> None:
    local = f"file://{data}/a.jsonl"
    spec = {
        "corpus": {"domain": [{"source": f"file://{data}/corpus.jsonl"}]},
        "finetuning": {"data": [{"source": local}, {"source": "s3://corpora/a.jsonl"}]},
        "evaluation": {
            "domain": {"tasks": [{"name": "codes", "source": f"file://{data}/codes.jsonl"}, {"name": "arc"}]}
        },
        "output": {"destination": f"file://{data}/out"},
    }
    assert set(SourceContents({"spec": spec}).latest()) == {local, f"file://{data}/codes.jsonl"}
