"""Tests checkpoints: complete or absent, signed, fenced, pruned, and skipped with a reason."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.checkpoint import CHECKPOINT_SCHEMA, CheckpointManifest
from dapt_contract.envelope import read_envelope
from dapt_contract.stages.pretrain import PretrainReport
from dapt_trainer.checkpoints.fence import read_claim
from dapt_trainer.errors import InfrastructureError, InputError, StopRequested
from dapt_trainer.stages import pretrain
from support.toy_training import (
    FILTERS,
    KEY,
    make_context,
    make_work_volume,
    pretrain_config,
    store_base_losses,
)

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
LINEAGE = "stages/pretrain-a1"


def trained(work: Path, config: Any = None, **options: Any) -> PretrainReport:
    config = config or pretrain_config()
    return pretrain.run(config, make_context(work, work / "scratch", config, **options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work volume on which run 1 has finished."""
    work = make_work_volume(tmp_path_factory.mktemp("finished"))
    trained(work)
    return work


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "work"))


def manifest(work: Path, name: str) -> CheckpointManifest:
    return read_envelope(work / LINEAGE / f"{name}.json", CHECKPOINT_SCHEMA, CheckpointManifest)[1]


def test_a_manifest_lists_every_file_and_is_signed(finished: Path) -> None:
    for step in (2, 4, 6):
        found = manifest(finished, f"try-1/checkpoint-{step}")
        folder = finished / found.folder
        assert {entry.path for entry in found.files} == {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        assert found.is_signed_with(KEY)
        assert found.candidate == f"a1-s{step}"
        assert found.domain is not None


def test_only_the_newest_checkpoints_keep_their_optimizer_states(finished: Path) -> None:
    kept = {step: manifest(finished, f"try-1/checkpoint-{step}").has_optimizer for step in (2, 4, 6)}
    assert kept == {2: False, 4: True, 6: True}
    assert not (finished / LINEAGE / "try-1/checkpoint-2/resume").exists()
    assert (finished / LINEAGE / "try-1/checkpoint-2/adapter_model.safetensors").exists()


def test_a_truncated_checkpoint_is_skipped_and_the_one_before_used(work: Path) -> None:
    weights = work / LINEAGE / "try-1/checkpoint-6/adapter_model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 10)
    report = trained(work, try_number=2)
    assert report.skipped_checkpoints == (
        f"skipped {LINEAGE}/try-1/checkpoint-6.json: adapter_model.safetensors has {size - 10} bytes, "
        f"but {size} were written",
    )
    assert [(row.step, row.try_number) for row in report.facts.checkpoints] == [(2, 1), (4, 1), (6, 2)]


def test_an_altered_byte_skips_the_checkpoint(work: Path) -> None:
    state = next((work / LINEAGE / "try-1/checkpoint-6/resume").glob("global_step*/*optim_states.pt"))
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    report = trained(work, try_number=2)
    (sentence,) = report.skipped_checkpoints
    assert sentence.endswith(
        f"{state.relative_to(state.parents[2]).as_posix()} was altered (its SHA-256 differs)"
    )
    assert report.facts.checkpoints[-1].try_number == 2


def test_a_manifest_with_a_foreign_signature_is_refused_unread(work: Path) -> None:
    path = work / LINEAGE / "try-1/checkpoint-6.json"
    envelope = json.loads(path.read_text())
    envelope["body"]["tokens"] += 1
    path.write_text(json.dumps(envelope))
    report = trained(work, try_number=2)
    assert report.skipped_checkpoints == (
        f"skipped {LINEAGE}/try-1/checkpoint-6.json: its signature does not match this adaptation's key: it was "
        "altered, belongs to another adaptation, or the key was lost and made again since",
    )


def test_run_with_another_key_says_what_it_refuses_and_begins_again(work: Path) -> None:
    config = pretrain_config()
    context = make_context(work, work / "scratch", config, try_number=2)
    report = pretrain.run(config, dataclasses.replace(context, signing_key=b"another" * 5))
    assert len(report.skipped_checkpoints) == 3
    assert all("the key was lost and made again since" in sentence for sentence in report.skipped_checkpoints)
    assert [row.try_number for row in report.facts.checkpoints] == [2, 2, 2]


def test_a_checkpoint_of_another_configuration_is_not_used(work: Path) -> None:
    report = trained(work, pretrain_config(seed=4), try_number=2)
    assert [row.try_number for row in report.facts.checkpoints] == [2, 2, 2]
    assert all(
        sentence.endswith("it was trained with another configuration")
        for sentence in report.skipped_checkpoints
    )


def test_half_the_micro_batch_resumes_from_the_same_checkpoint(work: Path) -> None:
    report = trained(work, pretrain_config(micro_batch_size=1), try_number=2)
    assert [row.try_number for row in report.facts.checkpoints] == [1, 1, 1]


def test_a_finished_run_is_reported_again_without_training(work: Path) -> None:
    first = trained(work, try_number=2)
    assert [point.step for point in first.curve] == [1, 2, 3, 4, 5, 6]
    assert first.facts.steps == 6
    assert not list((work / LINEAGE / "try-2").glob("checkpoint-*"))


def test_a_run_that_was_taken_over_writes_nothing(work: Path) -> None:
    trained(work, try_number=3, fence=9)
    with pytest.raises(InfrastructureError) as caught:
        trained(work, try_number=2, fence=8)
    assert str(caught.value) == (
        "run 3 (fence 9) has taken over pretrain-a1; this is run 2 (fence 8), which writes nothing more"
    )
    claim = read_claim(work / LINEAGE, KEY)
    assert claim is not None
    assert (claim.fence, len(claim.adopted)) == (9, 3)


def test_a_checkpoint_that_a_replaced_run_finishes_late_is_not_read(work: Path) -> None:
    late = work / LINEAGE / "try-1/checkpoint-6"
    hidden = work / "hidden"
    (late.with_suffix(".json")).rename(hidden.with_suffix(".json"))
    late.rename(hidden)
    trained(work, try_number=2)
    hidden.rename(late)
    hidden.with_suffix(".json").rename(late.with_suffix(".json"))
    report = trained(work, try_number=3)
    assert report.skipped_checkpoints == (
        f"skipped {LINEAGE}/try-1/checkpoint-6.json: it was written with fence 1 after fence 2 had taken over",
    )
    assert report.facts.checkpoints[-1].try_number == 2


def test_unfinished_saves_are_removed(work: Path) -> None:
    (work / LINEAGE / "try-1/checkpoint-6.json").unlink()
    partial = work / LINEAGE / "try-1/checkpoint-8.partial"
    partial.mkdir()
    (partial / "half").write_text("x")
    trained(work, try_number=2)
    assert not partial.exists()
    assert not (work / LINEAGE / "try-1/checkpoint-6").exists()


class Canary:
    """A pickle that creates a folder where it is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._folder),)


def test_pickles_that_are_planted_before_or_during_a_resume_are_never_opened(
    work: Path, tmp_path: Path
) -> None:
    import torch

    from dapt_trainer.context import SilentProgress

    canary, tries = tmp_path / "executed", work / LINEAGE / "try-1"
    names = ("mp_rank_01_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt")

    def plant(step: int) -> None:
        for name in names:
            torch.save(Canary(canary), tries / f"checkpoint-{step}/resume/global_step{step}/{name}")

    class Plants(SilentProgress):
        def update(self, **fields: Any) -> None:
            if fields.get("activity") == "loading model and data":
                plant(4)

    plant(6)
    report = trained(work, try_number=2, progress=Plants())
    assert report.skipped_checkpoints == (
        f"skipped {LINEAGE}/try-1/checkpoint-6.json: its folder has resume/global_step6/{names[0]}, which the "
        "manifest does not list",
    )
    assert [(row.step, row.try_number) for row in report.facts.checkpoints] == [(2, 1), (4, 1), (6, 2)]
    assert not canary.exists()
    # Both were planted where DeepSpeed would have found them.
    torch.load(tries / f"checkpoint-4/resume/global_step4/{names[0]}", weights_only=False)
    assert canary.exists()


def test_a_full_disk_in_a_save_is_reported_and_keeps_complete_checkpoints(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from dapt_trainer.training.step_trainer import StepTrainer

    work = make_work_volume(tmp_path)
    honest = StepTrainer.stage_resume_state

    def full(self: Any, staged: Any) -> None:
        if self.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(self, staged)

    monkeypatch.setattr(StepTrainer, "stage_resume_state", full)
    with pytest.raises(InfrastructureError) as caught:
        trained(work)
    text = str(caught.value)
    assert text.startswith("checkpoint-4 could not be saved: [Errno 28] No space left on device (")
    assert text.endswith(
        "; the last complete checkpoint, step 2, is kept; enlarge the volume or keep fewer checkpoints, and the next "
        "run continues from there"
    )
    assert not list((work / LINEAGE / "try-1").glob("*.partial"))
    monkeypatch.undo()
    report = trained(work, try_number=2)
    assert [(row.step, row.try_number) for row in report.facts.checkpoints] == [(2, 1), (4, 2), (6, 2)]


def test_a_checkpoint_is_completed_while_the_model_is_measured(tmp_path: Path, monkeypatch: Any) -> None:
    from dapt_trainer.checkpoints import run_checkpoints

    work = make_work_volume(tmp_path)
    measuring = threading.Event()
    honest_complete, honest_measure = run_checkpoints.complete, pretrain.side_perplexity

    def complete(folder: Path) -> Any:
        assert measuring.wait(60), "the measuring began only after the checkpoint was complete"
        return honest_complete(folder)

    def measure(*args: Any, **options: Any) -> Any:
        measuring.set()
        return honest_measure(*args, **options)

    monkeypatch.setattr(run_checkpoints, "complete", complete)
    monkeypatch.setattr(pretrain, "side_perplexity", measure)
    report = trained(work, pretrain_config(base_losses_digest=store_base_losses(work)))
    assert [row.step for row in report.facts.checkpoints] == [2, 4, 6]
    assert all(row.domain_b_error and row.general_b_error for row in report.facts.checkpoints)


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    from dapt_trainer.context import SilentProgress
    from dapt_trainer.staged_files import StagedFiles

    next_step = threading.Event()
    honest = StagedFiles.write

    class Board(SilentProgress):
        def update(self, **fields: Any) -> None:
            if fields.get("activity") == "training" and fields.get("step") == 3:
                next_step.set()

    def write(staged: Any, folder: Path) -> Any:
        if folder.name == "checkpoint-2.partial":
            assert next_step.wait(60), "the next step began only after the checkpoint was written"
        return honest(staged, folder)

    monkeypatch.setattr(StagedFiles, "write", write)
    report = trained(make_work_volume(tmp_path), progress=Board())
    assert [row.step for row in report.facts.checkpoints] == [2, 4, 6]


def test_a_full_disk_while_training_continues_is_reported_the_same_way(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from dapt_trainer.staged_files import StagedFiles

    work = make_work_volume(tmp_path)
    honest = StagedFiles.write

    def write(staged: Any, folder: Path) -> Any:
        if folder.name == "checkpoint-4.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(staged, folder)

    monkeypatch.setattr(StagedFiles, "write", write)
    with pytest.raises(InfrastructureError, match=r"checkpoint-4 could not be saved: .*step 2, is kept"):
        trained(work)
    assert not list((work / LINEAGE / "try-1").glob("*.partial"))


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in nested containers."""
    import torch

    if isinstance(state, torch.Tensor):
        return int(state.nbytes)
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(tensor_bytes(item) for item in items)


def test_a_checkpoint_holds_what_is_trained_and_its_optimizer_state_once(finished: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = finished / LINEAGE / "try-1/checkpoint-6"
    adapter = load_file(folder / "adapter_model.safetensors")
    trained_parameters = sum(tensor.numel() for tensor in adapter.values())
    state = sum(
        tensor_bytes(torch.load(path, weights_only=False))
        for path in (folder / "resume").rglob("*_states.pt")
    )
    # fp32 masters and two moments, and the step counters; neither the adapter again nor the frozen head.
    assert 12 * trained_parameters <= state < 12.1 * trained_parameters


def test_an_error_while_measuring_keeps_the_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    from dapt_trainer.checkpoints import run_checkpoints

    work = make_work_volume(tmp_path)
    honest = run_checkpoints.complete

    def slowly(folder: Path) -> Any:
        time.sleep(0.5)
        return honest(folder)

    def broken(*_: Any, **__: Any) -> Any:
        raise InputError("the held-out text is gone")

    monkeypatch.setattr(run_checkpoints, "complete", slowly)
    monkeypatch.setattr(pretrain, "side_perplexity", broken)
    with pytest.raises(InputError):
        trained(work)
    assert manifest(work, "try-1/checkpoint-2").domain is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # the shards are still mapped


def test_a_real_full_disk_leaves_the_last_checkpoint_whole(small_disk: Path) -> None:
    work = make_work_volume(small_disk)
    config = pretrain_config(lora=None, checkpoint_steps=(1, 2, 3, 4, 5, 6), keep_optimizer_states=6)
    with pytest.raises(
        InfrastructureError, match=r"could not be saved: .*the last complete checkpoint, step"
    ):
        trained(work, config)
    complete = [path.stem for path in (work / LINEAGE / "try-1").glob("checkpoint-*.json")]
    assert complete
    assert not list((work / LINEAGE / "try-1").glob("*.partial"))
    for name in complete:
        found = manifest(work, f"try-1/{name}")
        assert all(
            (work / found.folder / entry.path).stat().st_size == entry.size_bytes for entry in found.files
        )


def test_a_checkpoint_without_readings_is_not_a_candidate(tmp_path: Path) -> None:
    from dapt_trainer.context import SilentProgress

    class Stops(SilentProgress):
        def stop_requested(self) -> bool:
            return True

    work = make_work_volume(tmp_path)
    with pytest.raises(StopRequested):
        trained(work, progress=Stops())
    assert manifest(work, "try-1/checkpoint-1").domain is None
