"""Reads the batches of the next step in a thread while the accelerator computes this one.

A thread and no process: reading a row is a copy out of a mapped file, for which numpy releases the interpreter, and a
copy of this process would inherit its signal handlers, its collectives' threads and its accelerator. The thread reads
in the order of the batch sampler, which is a pure function of the step, and draws no random number that training uses;
so what it has read ahead of a checkpoint is simply read again by the run that resumes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import torch

from dapt_trainer.modeling.attention import Batch, Collate
from dapt_trainer.training.batch_order import BatchOrder

_ROOM_CHECK_SECONDS = 0.2
"""How long the thread waits for room before it looks again whether it was stopped."""


class PrefetchingLoader(torch.utils.data.DataLoader[object]):
    """Yields the batches of a data set in their order; a thread reads them ahead.

    Args:
        dataset: of rows.
        order: row indices of each batch.
        collate: makes a batch of rows.
        batches_ahead: batches that are kept ready.
        device: of this rank; batches are pinned for an accelerator.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset[object],
        order: BatchOrder,
        collate: Collate,
        *,
        batches_ahead: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=order,
            collate_fn=collate,
            # A loader draws a seed when it starts; it must not come from the stream that dropout draws from.
            generator=torch.Generator(),
            pin_memory=device.type != "cpu",
        )
        self._batches_ahead = batches_ahead
        self._rank_device = device
        self._reader: _Reader | None = None
        self._wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names a private class
        """Yield the batches that a thread of this call reads.

        Raises:
            Exception: what reading a batch raised, after all batches before it.
        """
        self.close()
        reader = self._reader = _Reader(super().__iter__(), self._batches_ahead, self._rank_device)
        while True:
            started = time.monotonic()
            batch = reader.take()
            self._wait_seconds += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def take_wait_seconds(self) -> float:
        """Return how long batches were waited for since the last call."""
        seconds, self._wait_seconds = self._wait_seconds, 0.0
        return seconds

    def close(self) -> None:
        """End the thread; call it when no further batch is needed."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _Reader:
    """Reads batches in a thread, as many ahead as there is room for."""

    def __init__(self, batches: Iterator[Batch], batches_ahead: int, device: torch.device) -> None:
        # None is the end; an exception is raised where its batch would have come.
        self._ready: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=batches_ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(batches, device), name="rows", daemon=True)
        self._thread.start()

    def take(self) -> Batch | None:
        """Return the next batch; None after the last one."""
        batch = self._ready.get()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def close(self) -> None:
        """Stop the thread and wait for its end."""
        self._stopped.set()
        self._thread.join()

    def _read(self, batches: Iterator[Batch], device: torch.device) -> None:
        if device.type == "cuda":
            # A thread starts on the first accelerator, and pinning memory would open a context there.
            torch.cuda.set_device(device)
        try:
            for batch in batches:
                if not self._put(batch):
                    return
            self._put(None)
        except Exception as error:  # raised in the training thread, where the batch is taken
            self._put(error)

    def _put(self, batch: Batch | Exception | None) -> bool:
        """Wait for room and add a batch; return whether the thread goes on."""
        while not self._stopped.is_set():
            try:
                self._ready.put(batch, timeout=_ROOM_CHECK_SECONDS)
            except queue.Full:
                continue
            return True
        return False
