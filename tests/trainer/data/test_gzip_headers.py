"""Tests that headers and padding of gzip files, which Python reads byte by byte, are bounded."""

from __future__ import annotations

import gzip
from pathlib import Path

import fsspec
import pytest

from dapt_trainer.data.reading.sources import SourceFile
from dapt_trainer.data.reading.unpacked import BadFileError, open_unpacked

MEMBER = gzip.compress(b"text\n")
NAME_FLAG = 8


def member_named(name: bytes) -> bytes:
    return MEMBER[:3] + bytes([NAME_FLAG]) + MEMBER[4:10] + name + b"\0" + MEMBER[10:]


def unpacked(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    file = SourceFile(str(path), path.name, "jsonl", ".gz", len(content))
    with open_unpacked(fsspec.filesystem("file"), file) as stream:
        return stream.read()


@pytest.mark.parametrize(
    "content", [member_named(b"n" * 100_000), member_named(b"n" * 40_000) * 3, MEMBER + bytes(100_000)]
)
def test_gzip_file_of_headers_and_padding_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadFileError) as caught:
        unpacked(tmp_path / "a.jsonl.gz", content)
    assert str(caught.value) == (
        "a.jsonl.gz: more than 65,536 bytes and a sixteenth of it are names, comments and padding of gzip; pack its "
        "text again in one piece"
    )


def test_gzip_members_with_names_and_padding_are_read(tmp_path: Path) -> None:
    content = (member_named(b"corpus.jsonl") * 100) + bytes(10_240)
    assert unpacked(tmp_path / "a.jsonl.gz", content) == b"text\n" * 100
