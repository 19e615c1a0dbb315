"""Gangs that pretrain a toy model, and ranks of them that die or stop where a test wants it.

A rank may kill itself at a named place, as SIGKILL does: `step:N` (rank 1, after step N), `save:N` (rank 0, when
half of checkpoint N is written), `rename:N` (rank 0, after the folder was renamed, before the manifest). `term:N` asks
rank 1 alone to stop after step N; `nan:N` makes the loss of step N no number on rank 1 alone; `slow:` makes the forward
passes of rank 1 slow.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dapt_contract.stages.common import DistributionConfig, LoraConfig
from dapt_contract.stages.pretrain import PretrainReport
from dapt_trainer.context import SilentProgress
from support.rank_processes import run_ranks


class Gang:
    """What became of a gang."""

    def __init__(self, work: Path, number: int, exit_codes: list[int]) -> None:
        self.exit_codes = exit_codes
        self.work = work
        self._number = number

    def said(self, rank: int) -> str:
        """The sentence that a rank ended with, when it ended by an exception."""
        path = self.work / f"said-{self._number}-{rank}.txt"
        return path.read_text() if path.exists() else ""

    @property
    def report(self) -> PretrainReport:
        """Of a gang that finished."""
        path = self.work / f"report-{self._number}.json"
        assert path.exists(), [self.exit_codes, *(self.said(rank) for rank in range(len(self.exit_codes)))]
        return PretrainReport.model_validate_json(path.read_text())


def run_gang(work: Path, number: int, changes: dict[str, Any], place: str = "", *, ranks: int = 2) -> Gang:
    """Start all ranks and wait for them."""
    return Gang(work, number, run_ranks(run_rank, work, number, changes, place, ranks=ranks))


def die() -> None:
    """As SIGKILL from outside."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_saves(folder: Path) -> None:
    """Wait until what a run has begun to save is complete: which save a death strikes must not be chance."""
    deadline = time.monotonic() + 30
    while any(
        not path.with_suffix(".json").exists() for path in folder.glob("checkpoint-*") if path.is_dir()
    ):
        assert time.monotonic() < deadline, "a save was never completed"
        time.sleep(0.01)


class Board(SilentProgress):
    """Dies, or asks to stop, at a step."""

    def __init__(self, place: str, step: int, rank: int, folder: Path) -> None:
        self.place, self.step, self.rank, self.asked = place, step, rank, False
        self.folder = folder

    def update(self, **fields: Any) -> None:
        if fields.get("activity") == "training" and fields.get("step") == self.step and self.rank == 1:
            if self.place == "step":
                wait_for_saves(self.folder)
                die()
            self.asked = self.place == "term"
        if self.rank == 0 and fields.get("slow_rank"):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "slow-rank.txt").write_text(fields["slow_rank"])

    def stop_requested(self) -> bool:
        return self.asked


def _die_in_save(place: str, step: str) -> None:
    from dapt_trainer.checkpoints import run_checkpoints
    from dapt_trainer.staged_files import StagedFiles

    if place == "save":
        honest = StagedFiles.write

        def half(self: StagedFiles, folder: Path) -> Any:
            if folder.name == f"checkpoint-{step}.partial":
                for name in self.names()[::2]:
                    self.remove(name)
                honest(self, folder)
                die()
            return honest(self, folder)

        StagedFiles.write = half  # type: ignore[method-assign]
    if place == "rename":
        written: Callable[..., Any] = run_checkpoints.write_manifest

        def before_manifest(path: Path, *args: Any, **kwargs: Any) -> Any:
            if path.name == f"checkpoint-{step}.json":
                die()
            return written(path, *args, **kwargs)

        run_checkpoints.write_manifest = before_manifest


def _poison(step: int) -> None:
    """Make the loss of one step no number."""
    from dapt_trainer.training.step_trainer import StepTrainer

    honest = StepTrainer.compute_loss

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = honest(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step + 1 == step else loss

    StepTrainer.compute_loss = poisoned


def _compare_often(rank: int) -> None:
    """Let ranks compare their times every second step, and rank 1 take half a second more for its forward pass."""
    from dapt_trainer.training import rank_pace

    rank_pace.INTERVAL_STEPS = 2  # type: ignore[misc]
    honest = rank_pace.ForwardClock.attach

    def slowed(self: Any, engine: Any) -> None:
        honest(self, engine)
        if rank == 1:
            engine.register_forward_pre_hook(lambda *_: time.sleep(0.5))

    rank_pace.ForwardClock.attach = slowed  # type: ignore[method-assign]


def _note_penalty(work: Path, rank: int) -> None:
    """Write down how much a rank keeps for a penalty."""
    from dapt_trainer.training.step_trainer import StepTrainer

    honest = StepTrainer.add_penalty

    def noted(self: Any, penalty: Any) -> None:
        (work / f"penalty-bytes-{rank}.txt").write_text(str(penalty.held_bytes()))
        honest(self, penalty)

    StepTrainer.add_penalty = noted  # type: ignore[method-assign]


def run_rank(rank: int, world_size: int, work: Path, number: int, changes: dict[str, Any], where: str) -> int:
    """Run one rank's part of pretraining; returns the stage's exit code."""
    from dapt_trainer.errors import StageEnded
    from dapt_trainer.stages import pretrain
    from support.toy_training import make_context, pretrain_config

    place, _, step = where.partition(":")
    if rank == 0:
        _die_in_save(place, step)
    elif place == "nan":
        _poison(int(step))
    if place == "slow":
        _compare_often(rank)
    distribution, lora = DistributionConfig(**changes["distribution"]), LoraConfig(rank=4, alpha=8)
    config = pretrain_config(
        distribution=distribution,
        lora=lora if changes["lora"] else None,
        micro_batch_size=4 // world_size,
        **changes.get("config", {}),
    )
    board = Board(place, int(step or 0), rank, work / f"stages/pretrain-a1/try-{number}")
    context = make_context(
        work,
        work / f"scratch-{rank}",
        config,
        try_number=number,
        rank=rank,
        world_size=world_size,
        progress=board,
    )
    _note_penalty(work, rank)
    code = 0
    try:
        report = pretrain.run(config, context)
        if rank == 0:
            (work / f"report-{number}.json").write_text(report.model_dump_json())
    except StageEnded as error:
        (work / f"said-{number}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        code = int(error.exit_code)
    except BaseException as error:
        (work / f"said-{number}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        code = 1
    return code
