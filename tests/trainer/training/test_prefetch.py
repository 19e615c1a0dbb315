"""Tests that batches are read ahead in their order, and that reading ends with the training."""

from __future__ import annotations

import threading

import pytest
import torch

from dapt_trainer.training.batch_order import BatchOrder
from dapt_trainer.training.prefetch import PrefetchingLoader

CPU = torch.device("cpu")
ORDER = BatchOrder(total_steps=4, global_batch_size=4, micro_batch_size=2, rank=0, world_size=1)


class Rows(torch.utils.data.Dataset[int]):
    """Rows that remember which of them were read."""

    def __init__(self, fails_at: int = -1) -> None:
        self.read: list[int] = []
        self._fails_at = fails_at
        self.gate = threading.Event()
        self.gate.set()

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> int:
        self.gate.wait()
        if index == self._fails_at:
            raise OSError(f"row {index} is gone")
        self.read.append(index)
        return index


def loader_of(rows: Rows, order: BatchOrder = ORDER, *, ahead: int = 2) -> PrefetchingLoader:
    return PrefetchingLoader(rows, order, lambda batch: {"rows": batch}, batches_ahead=ahead, device=CPU)


def test_batches_come_in_the_order_of_the_run() -> None:
    assert [batch["rows"] for batch in loader_of(Rows())] == list(ORDER)


def test_a_resumed_run_reads_the_batches_that_a_stopped_one_had_read_ahead() -> None:
    stopped = loader_of(Rows(), ahead=8)
    batches = iter(stopped)
    trained = [next(batches)["rows"] for _ in range(4)]
    stopped.close()
    resumed = BatchOrder(4, 4, 2, rank=0, world_size=1, first_step=2)
    assert trained + [batch["rows"] for batch in loader_of(Rows(), resumed)] == list(ORDER)


def test_no_more_batches_are_read_than_there_is_room_for() -> None:
    rows = Rows()
    loader = loader_of(rows, ahead=2)
    batches = iter(loader)
    next(batches)
    loader.close()
    # One was taken, two are ready, and one may wait for room: each of two rows.
    assert len(rows.read) <= 8
    assert not [thread for thread in threading.enumerate() if thread.name == "rows"]


def test_an_unreadable_row_is_an_error_where_its_batch_is_due() -> None:
    batches = iter(loader_of(Rows(fails_at=4)))
    assert [next(batches)["rows"] for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(OSError, match="row 4 is gone"):
        next(batches)


def test_waiting_for_rows_is_measured_once() -> None:
    rows = Rows()
    rows.gate.clear()
    loader = loader_of(rows)
    opens = threading.Timer(0.1, rows.gate.set)
    opens.start()
    next(iter(loader))
    loader.close()
    assert loader.take_wait_seconds() > 0
    assert loader.take_wait_seconds() == 0


def test_reading_draws_nothing_from_the_stream_of_dropout() -> None:
    before = torch.get_rng_state()
    list(loader_of(Rows()))
    assert torch.equal(torch.get_rng_state(), before)
