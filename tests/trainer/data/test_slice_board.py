"""The board of slices beside what others have left in its folders."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.packing.data_manifest import ShardFile
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.data.slices.board import SliceBoard
from dapt_trainer.data.slices.cut import CorpusSlice, CorpusSource, slices_of
from dapt_trainer.data.slices.records import SliceRecord, write_record
from support.deep_folders import make_deep

KEY = b"a key of the tests that is long enough"
TOKENS = bytes(range(256)) * 64


def read(folder: Path) -> SliceRecord:
    folder.mkdir()
    return SliceRecord(identity="")


def only_slice(root: Path) -> CorpusSlice:
    (root / "a.jsonl").write_text('{"text": "a"}\n')
    config = TextSource(source=f"file://{root}/a.jsonl")
    (entry,) = slices_of(CorpusSource("domain", 0, config, resolve(config.source, "source")))
    return entry


def reading(halfway: Callable[[], object], first_byte: int = 0) -> Callable[[Path], SliceRecord]:
    """A reader that writes tokens and its record, and does something in the middle."""

    def read_tokens(folder: Path) -> SliceRecord:
        folder.mkdir()
        content = bytes([first_byte]) + TOKENS
        with (folder / "tokens.bin").open("wb") as file:
            file.write(content[:5000])
            file.flush()
            halfway()
            file.write(content[5000:])
        digest = hashlib.sha256(content).hexdigest()
        entry = ShardFile(name="tokens.bin", size_bytes=len(content), sha256=digest)
        record = SliceRecord(identity="same", tokens=first_byte, files=(entry,))
        write_record(folder, record, "run", KEY)
        return record

    return read_tokens


def assert_one_whole_slice(board: SliceBoard, entry: CorpusSlice) -> SliceRecord:
    assert board.finished() == {entry.name}
    spool = board.spool(entry)
    assert spool.is_unchanged()
    assert sorted(path.name for path in spool.folder.iterdir()) == ["slice.json", "tokens.bin"]
    return spool.record


def test_a_slice_that_another_process_has_finished_meanwhile_stays(tmp_path: Path) -> None:
    entry = only_slice(tmp_path)
    board = SliceBoard(tmp_path / "own", key=KEY)

    def other_is_faster() -> None:
        SliceBoard(tmp_path / "own", key=KEY).finish(entry, "same", reading(int, 7), may_fail=False)

    record = board.finish(entry, "same", reading(other_is_faster, 8), may_fail=False)
    assert record.tokens == assert_one_whole_slice(board, entry).tokens == 7
    assert len(list((tmp_path / "own/slices").iterdir())) == 1


@pytest.mark.parametrize("thing", ["file", "link", "folder", "cut slice", "foreign slice"])
def test_what_is_no_slice_under_its_name_is_replaced(tmp_path: Path, thing: str) -> None:
    entry = only_slice(tmp_path)
    board = SliceBoard(tmp_path / "own", key=KEY)
    place = tmp_path / "own/slices" / entry.name
    if thing == "file":
        place.write_text("{}")
    elif thing == "link":
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/kept").touch()
        place.symlink_to(tmp_path / "outside")
    elif thing == "folder":
        (place / "deep/er").mkdir(parents=True)
    else:
        reading(int, 9)(place)
        if thing == "cut slice":
            os.truncate(place / "tokens.bin", 5000)
        else:
            write_record(place, SliceRecord(identity="same"), "run", b"somebody else's key, long enough")
    board.finish(entry, "same", reading(int, 7), may_fail=False)
    assert assert_one_whole_slice(board, entry).tokens == 7
    assert thing != "link" or (tmp_path / "outside/kept").exists()


def test_a_link_that_an_earlier_run_left_as_a_slice_is_not_taken(tmp_path: Path) -> None:
    entry = only_slice(tmp_path)
    reading(int, 9)(tmp_path / "elsewhere")
    (tmp_path / "earlier/slices").mkdir(parents=True)
    (tmp_path / "earlier/slices" / entry.name).symlink_to(tmp_path / "elsewhere")
    board = SliceBoard(tmp_path / "own", [tmp_path / "earlier"], KEY)
    board.finish(entry, "same", reading(int, 7), may_fail=False)
    assert assert_one_whole_slice(board, entry).tokens == 7


def race(folder: Path, earlier: Path, entry: CorpusSlice, number: int) -> None:
    """What one of several processes does that all read the same slice, of which the first is killed."""
    board = SliceBoard(folder, [earlier], KEY)
    halfway = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if number == 0 else int
    board.finish(entry, "same", reading(halfway, number), may_fail=False)


@pytest.mark.parametrize("has_earlier", [False, True])
def test_processes_that_read_one_slice_at_once_leave_one_whole_slice(
    tmp_path: Path, has_earlier: bool
) -> None:
    entry = only_slice(tmp_path)
    if has_earlier:
        (tmp_path / "earlier/slices").mkdir(parents=True)
        reading(int, 9)(tmp_path / "earlier/slices" / entry.name)
    start = multiprocessing.get_context("fork").Process
    processes = [
        start(target=race, args=(tmp_path / "own", tmp_path / "earlier", entry, number))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    # The first is killed, unless the slice of the earlier run was still there for it.
    assert {process.exitcode for process in processes[1:]} == {0}
    assert processes[0].exitcode == -signal.SIGKILL or has_earlier
    assert_one_whole_slice(SliceBoard(tmp_path / "own", key=KEY), entry)


def test_folders_of_any_depth_in_the_place_of_a_slice_are_removed(tmp_path: Path) -> None:
    entry = only_slice(tmp_path)
    board = SliceBoard(tmp_path / "own")
    make_deep(tmp_path / "own" / "slices" / entry.name)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own, which some library may have raised in this process
    try:
        assert board.finish(entry, "", read, may_fail=False).identity == ""
    finally:
        sys.setrecursionlimit(limit)
