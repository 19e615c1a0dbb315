"""Tests the share of the accelerators' peak, which follows from three numbers of a rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_trainer.pod.heartbeat import Heart
from dapt_trainer.pod.progress import Board
from dapt_trainer.pod.settings import PodSettings
from support.launch_builders import stage_run


def board(folder: Path, peak_flops: float = 0.0) -> Board:
    return Board(stage_run().stage_file, Heart(folder, 0), peak_flops)


def test_the_share_of_the_peak_is_speed_times_work_over_the_peak(tmp_path: Path) -> None:
    shown = board(tmp_path, peak_flops=16 * 989e12)
    shown.update(flops_per_token=6 * 8e9)
    assert "mfu_ratio" not in shown.measures, "the speed is not known yet"
    shown.update(tokens_per_second=132_000.0, step=1)
    assert shown.measures["mfu_ratio"] == pytest.approx(0.4004, abs=1e-4)


def test_without_a_peak_there_is_no_share(tmp_path: Path) -> None:
    shown = board(tmp_path)
    shown.update(flops_per_token=6 * 8e9, tokens_per_second=132_000.0)
    assert "mfu_ratio" not in shown.measures


def test_the_peak_is_that_of_all_ranks() -> None:
    pod = {"DAPT_WORK": "/work", "PET_NNODES": "2", "PET_NPROC_PER_NODE": "8"}
    assert PodSettings.read(pod | {"DAPT_PEAK_TFLOPS": "989"}).peak_flops == 16 * 989e12
    assert PodSettings.read(pod).peak_flops == 0.0
