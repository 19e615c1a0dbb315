"""Killed at any moment and run again, prepare ends with the same files; finished, it does nothing again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dapt_contract.stages.common import TaskConfig
from dapt_contract.stages.prepare import PrepareConfig, PrepareReport
from dapt_trainer.data.packing.data_manifest import DataManifest, read_manifest, write_manifest
from dapt_trainer.data.packing.recorded_data import require_recorded_data
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.errors import InputError
from support.toy_corpus import Board

FOLDERS = ("model", "data", "held-out")


def files(work: Path) -> dict[str, str]:
    """Digest of every file that other stages read; the manifest by its data (it has the clock's readings)."""
    return {
        str(path.relative_to(work)): sha256_of_file(path)
        for folder in FOLDERS
        for path in sorted((work / folder).rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def after(config: PrepareConfig, report: PrepareReport) -> PrepareConfig:
    """Return the configuration of a run that follows one which has reported."""
    return config.model_copy(update={"prepared_digest": report.facts.data_digest})


class Killed(BaseException):
    """Ends a stage where no handler stands."""


class Killer(Board):
    """Kills at the n-th sign of life."""

    def __init__(self, beats: int) -> None:
        super().__init__()
        self._left = beats

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed

    def update(self, **fields: object) -> None:
        self._count()

    def heartbeat(self) -> None:
        self._count()


def killed_at(config, tmp_path: Path, work: Path, beats: int, try_number: int) -> bool:
    from dapt_contract.run_identity import RunIdentity
    from dapt_contract.stage_file import StageFile
    from dapt_trainer.context import StageContext
    from dapt_trainer.stages.prepare import run

    identity = RunIdentity(
        namespace="d", name="n", uid="u", stage="prepare", attempt=1, try_number=try_number, fence=try_number
    )
    context = StageContext(
        stage=StageFile(run=identity, kind="prepare", config=config),
        work=work,
        scratch=tmp_path,
        progress=Killer(beats),
    )
    try:
        run(config, context)
    except Killed:
        return True
    return False


def test_prepare_killed_between_any_two_heartbeats_ends_with_the_same_files(
    config, prepare, tmp_path: Path
) -> None:
    whole = prepare(config, work=tmp_path / "whole")
    expected = files(tmp_path / "whole")
    work = tmp_path / "broken"
    work.mkdir()
    beats = 0
    while killed_at(config, tmp_path, work, beats, try_number=beats + 1):
        assert not (work / "data/manifest.json").exists()
        beats += 1
    assert beats > 8
    assert files(work) == expected
    assert read_manifest(work).data_digest == whole.facts.data_digest


def test_killed_while_folders_are_moved_it_ends_with_the_same_files(
    config, prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(config, work=tmp_path / "whole")
    work = tmp_path / "broken"
    rename = Path.rename

    def renames(most: int) -> Iterator[None]:
        left = [most]

        def counted(path: Path, target: Path) -> Path:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted)
            yield

    for most in range(9):
        for _ in renames(most):
            try:
                prepare(config.model_copy(update={"global_batch_size": 3}), work=work, try_number=most + 1)
            except Killed:
                assert not (work / "data").exists()
    report = prepare(config, work=work, try_number=20)
    assert files(work) == files(tmp_path / "whole")
    assert report.facts.data_digest == whole.facts.data_digest


def test_a_finished_prepare_is_not_done_again(config, prepare, board) -> None:
    first = prepare(config)
    board.activities.clear()
    assert prepare(after(config, first), try_number=2) == first
    assert board.activities == []


def test_manifest_that_nobody_reported_is_not_believed_though_it_agrees_with_its_files(
    config, prepare, board, tmp_path: Path
) -> None:
    """Whoever writes to the work volume before prepare reports can leave data and a manifest that fit each other."""
    work = tmp_path / "work"
    honest, expected = prepare(config, work=tmp_path / "honest"), files(tmp_path / "honest")
    prepare(config)
    shard = work / "data/domain-0/tokens.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    planted = read_manifest(work).model_dump(mode="json")
    for file in planted["shards"][0]["files"]:
        if file["name"] == shard.name:
            file["sha256"] = sha256_of_file(shard)
    write_manifest(work / "data", DataManifest.model_validate(planted).with_digest(), run_key="")
    report = prepare(config, try_number=2)
    assert files(work) == expected
    assert report.facts.data_digest == honest.facts.data_digest
    assert report.facts.warnings[len(honest.facts.warnings) :] == (
        f"{work}/data/manifest.json: was left by a prepare that did not report, so all sources were read again; unless "
        "prepare was interrupted, find out what else writes to the work volume.",
    )


def test_another_configuration_is_prepared_again_and_replaces_everything(
    config, prepare, tmp_path: Path
) -> None:
    prepare(config)
    other = config.model_copy(update={"seed": 99})
    prepare(other, try_number=2)
    assert read_manifest(tmp_path / "work").config_digest == other.corpus_digest
    tries = tmp_path / "work/stages/prepare-a1"
    assert [path.name for path in tries.rglob("*") if path.is_file()] == []


def items(path: Path, *questions: str) -> TaskConfig:
    rows = ({"question": question, "choices": ["yes", "no"], "answer": 0} for question in questions)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskConfig(name="bones", side="domain", source=f"file://{path}")


@pytest.mark.parametrize("decontaminate", [False, True])
def test_other_items_are_another_corpus_only_where_it_is_cleaned_of_them(
    config, prepare, board, tmp_path: Path, decontaminate: bool
) -> None:
    work = tmp_path / "work"
    first = items(tmp_path / "1.jsonl", "Is a femur a bone?")
    config = config.model_copy(update={"decontaminate": decontaminate, "tasks": (first,)})
    before, kept = prepare(config), files(work)
    board.activities.clear()
    second = items(tmp_path / "2.jsonl", "Is a femur a bone?", "Is blood a bone?")
    other = after(config.model_copy(update={"tasks": (second,)}), before)
    renewed = prepare(other, try_number=2)
    assert files(work) == kept
    assert ("packing" in board.activities) is decontaminate
    assert len((work / "tasks/bones.jsonl").read_text().splitlines()) == 2
    assert (before.facts.task_items, renewed.facts.task_items) == ((("bones", 1),), (("bones", 2),))
    assert renewed.facts.data_digest != before.facts.data_digest
    require_recorded_data(work, renewed.facts.data_digest)
    board.activities.clear()
    assert prepare(after(other, renewed), try_number=3) == renewed == read_manifest(work).report
    assert board.activities == []


def test_manifest_that_was_rewritten_before_other_items_are_read_is_not_believed(
    config, prepare, board, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    config = config.model_copy(update={"decontaminate": False})
    before, kept = prepare(config).facts, read_manifest(work)
    shards = (kept.shards[0].model_copy(update={"weight": 9.0}), *kept.shards[1:])
    write_manifest(work / "data", kept.model_copy(update={"shards": shards}).with_digest(), run_key="")
    other = {
        "tasks": (items(tmp_path / "1.jsonl", "Is a femur a bone?"),),
        "prepared_digest": before.data_digest,
    }
    board.activities.clear()
    facts = prepare(config.model_copy(update=other), try_number=2).facts
    assert "packing" in board.activities
    assert read_manifest(work).shards == kept.shards
    assert facts.warnings[len(before.warnings) :] == (
        f"{work}/data/manifest.json: is not the manifest that prepare reported, so all sources were read again; unless "
        "prepare was interrupted, find out what else writes to the work volume.",
    )


def test_broken_items_leave_the_finished_corpus_with_the_items_it_has(
    config, prepare, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    task = items(tmp_path / "1.jsonl", "Is a femur a bone?")
    config = config.model_copy(update={"decontaminate": False, "tasks": (task,)})
    report = prepare(config)
    (tmp_path / "2.jsonl").write_text("{\n")
    broken = TaskConfig(name="bones", side="domain", source=f"file://{tmp_path}/2.jsonl")
    with pytest.raises(InputError, match=r"2\.jsonl"):
        prepare(after(config.model_copy(update={"tasks": (broken,)}), report), try_number=2)
    assert read_manifest(work).report == report
    assert len((work / "tasks/bones.jsonl").read_text().splitlines()) == 1


@pytest.mark.faults
def test_sigkill_at_a_random_moment_changes_nothing(config, prepare, tmp_path: Path) -> None:
    """With worker processes under way; the moments are spread over a whole run."""
    whole = prepare(config, work=tmp_path / "whole")
    stage = tmp_path / "config.json"
    stage.write_text(config.model_dump_json())
    work = tmp_path / "killed"
    work.mkdir()
    script = f"""
import sys
from pathlib import Path
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.prepare import PrepareConfig
from dapt_trainer.context import SilentProgress, StageContext
from dapt_trainer.data import analysis
from dapt_trainer.stages.prepare import run
if __name__ == "__main__":
    analysis.AnalysisPool.__init__.__kwdefaults__.update(processes=2, inline_characters=0)
    config = PrepareConfig.model_validate_json(Path({str(stage)!r}).read_text())
    identity = RunIdentity(
        namespace="d", name="n", uid="u", stage="prepare", attempt=1, try_number=int(sys.argv[1]), fence=1
    )
    file = StageFile(run=identity, kind="prepare", config=config)
    print("started", flush=True)
    run(config, StageContext(stage=file, work=Path({str(work)!r}), scratch=Path("/tmp"), progress=SilentProgress()))
"""
    program = tmp_path / "program.py"
    program.write_text(script)
    for number, seconds in enumerate((0.02, 0.2, 0.8, 1.6, None), start=1):
        process = subprocess.Popen(
            [sys.executable, str(program), str(number)], stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        if seconds is not None:
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert files(work) == files(tmp_path / "whole")
    assert read_manifest(work).data_digest == whole.facts.data_digest
