"""What prepare wrote beside the shards is compared with the manifest before it is used."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dapt_contract.stages.common import ProbeConfig, TaskConfig
from dapt_contract.stages.prepare import PrepareConfig
from dapt_trainer.data.packing.data_manifest import read_manifest
from dapt_trainer.data.packing.held_out import held_out_name, read_held_out
from dapt_trainer.data.packing.prepared_files import check_prepared
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.errors import InputError
from support.toy_corpus import Board

FOLDERS = ("held-out", "tasks", "probes", "items", "harness")


@pytest.fixture
def measured(config: PrepareConfig, tmp_path: Path) -> PrepareConfig:
    item = {"choices": ["humerus", "ulna"], "answer": 0}
    for name, key in (("bones", "question"), ("facts", "prompt")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({key: "The longest bone of the arm", **item}))
    tasks = (TaskConfig(name="bones", side="domain", source=f"file://{tmp_path}/bones.jsonl"),)
    probes = (ProbeConfig(name="facts", side="domain", source=f"file://{tmp_path}/facts.jsonl"),)
    return config.model_copy(update={"tasks": tasks, "probes": probes})


def test_a_changed_or_missing_file_is_refused_and_prepare_writes_it_again(
    measured: PrepareConfig, prepare, tmp_path: Path, board: Board
) -> None:
    digest_of_data = prepare(measured).facts.data_digest
    work = tmp_path / "work"
    listed = dict(read_manifest(work).files)
    assert {name.split("/")[0] for name in listed} == {"held-out", "tasks", "probes", "items"}
    check_prepared(work, *FOLDERS)
    for name, digest in listed.items():
        path, before = work / name, (work / name).read_bytes()
        path.write_bytes(before[:-1])
        found = sha256_of_file(path)[:12]
        with pytest.raises(InputError) as caught:
            check_prepared(work, name.split("/")[0])
        assert str(caught.value) == (
            f"{path}: has the SHA-256 {found}, and {digest[:12]} was written there: the work volume changed since, so the file is not used; restore it, or create a new DomainAdaptation, which writes it again"
        )
        check_prepared(work, *(folder for folder in FOLDERS if not name.startswith(folder)))
        path.unlink()
        with pytest.raises(InputError, match="is missing, and"):
            check_prepared(work, name.split("/")[0])
        path.write_bytes(before)
    # Held-out text is missed by prepare itself: it makes the corpus again, which has the same text.
    name = held_out_name("domain", "a")
    (work / name).write_bytes(b"")
    board.activities.clear()
    prepare(measured.model_copy(update={"prepared_digest": digest_of_data}), try_number=2)
    assert "packing domain[0]" in board.activities
    assert dict(read_manifest(work).files) == listed
    check_prepared(work, *FOLDERS)


def test_held_out_text_that_was_cut_at_the_end_of_a_line_is_not_read(
    config: PrepareConfig, prepare, tmp_path: Path
) -> None:
    prepare(config)
    work = tmp_path / "work"
    name = held_out_name("general", "b")
    expected = dict(read_manifest(work).files)[name]
    assert read_held_out(work, "general", "b", expected)
    lines = (work / name).read_bytes().splitlines(keepends=True)
    (work / name).write_bytes(b"".join(lines[:-1]))
    assert len(read_held_out(work, "general", "b")) == len(lines) - 1
    with pytest.raises(InputError, match=f"and {expected[:12]} was written there"):
        read_held_out(work, "general", "b", expected)
