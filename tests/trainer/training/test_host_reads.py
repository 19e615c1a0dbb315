"""Tests how often a training step reads a number of the accelerator: each time it waits for all that was started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig
from dapt_trainer.context import SilentProgress
from dapt_trainer.distributed import Ranks
from dapt_trainer.stages import pretrain
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
FIRST, LAST = 2, 5


class ReadsOfSingleNumbers(TorchDispatchMode):
    """Counts `item()`, `float()` and `bool()` of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name() == "aten::_local_scalar_dense":
            self.num_reads += 1
        return function(*args, **(kwargs or {}))


class CountingBoard(SilentProgress):
    """Counts the reads from the end of one step to the end of a later one."""

    def __init__(self) -> None:
        self.mode = ReadsOfSingleNumbers()

    def update(self, **fields: Any) -> None:
        if fields.get("activity") != "training":
            return
        if fields["step"] == FIRST:
            self.mode.__enter__()
        if fields["step"] == LAST:
            self.mode.__exit__(None, None, None)


def test_a_step_reads_its_numbers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[int] = []
    read_together = Ranks.sum_on_device

    def counted(self: Ranks, *values: Any) -> list[float]:
        readings.append(len(values))
        return read_together(self, *values)

    monkeypatch.setattr(Ranks, "sum_on_device", counted)
    # Where a mask keeps documents apart, as on the CPU, transformers looks once a forward pass whether there are any.
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices",
        lambda position_ids: (position_ids == 0).cumsum(-1),
    )
    work = make_work_volume(tmp_path / "work")
    board = CountingBoard()
    config = pretrain_config(
        total_steps=LAST + 1,
        checkpoint_steps=(LAST + 1,),
        distribution=DistributionConfig(zero_stage=0, precision="fp32"),
    )
    pretrain.run(config, make_context(work, tmp_path / "scratch", config, progress=board))
    assert len(readings) == LAST + 1
    assert board.mode.num_reads == 0
