"""The board of slices beside what others have left in its folders."""

from __future__ import annotations

import sys
from pathlib import Path

from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.data.slices.board import SliceBoard
from dapt_trainer.data.slices.cut import CorpusSource, slices_of
from dapt_trainer.data.slices.records import SliceRecord
from support.deep_folders import make_deep


def read(folder: Path) -> SliceRecord:
    folder.mkdir()
    return SliceRecord(identity="")


def test_folders_of_any_depth_in_the_place_of_a_slice_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    config = TextSource(source=f"file://{tmp_path}/a.jsonl")
    (entry,) = slices_of(CorpusSource("domain", 0, config, resolve(config.source, "source")))
    board = SliceBoard(tmp_path / "own")
    make_deep(tmp_path / "own" / "slices" / f".{entry.name}")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own, which some library may have raised in this process
    try:
        assert board.finish(entry, "", read, may_fail=False).identity == ""
    finally:
        sys.setrecursionlimit(limit)
