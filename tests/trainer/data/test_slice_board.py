"""The board of slices beside what others have left in its folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.data.slices.board import SliceBoard
from dapt_trainer.data.slices.cut import CorpusSource, slices_of
from dapt_trainer.data.slices.records import SliceRecord


def read(folder: Path) -> SliceRecord:
    folder.mkdir()
    return SliceRecord(identity="")


def test_folders_of_any_depth_in_the_place_of_a_slice_are_an_error_of_the_volume(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    config = TextSource(source=f"file://{tmp_path}/a.jsonl")
    (entry,) = slices_of(CorpusSource("domain", 0, config, resolve(config.source, "source")))
    board = SliceBoard(tmp_path / "own")
    leaf = tmp_path / "own" / "slices" / f".{entry.name}"
    leaf.mkdir()
    for _ in range(1200):
        leaf /= "d"
        leaf.mkdir()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own, which some library may have raised in this process
    try:
        with pytest.raises(FileExistsError):
            board.finish(entry, "", read, may_fail=False)
    finally:
        sys.setrecursionlimit(limit)
        os.removedirs(leaf)  # bottom up, since nothing removes them by recursion
