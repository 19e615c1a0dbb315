"""Looks in many documents for held-out text, on all cores: each document is checked by itself.

A window of documents is checked by one process, which reads their sketches from the spool. What it finds does not
depend on the window, nor on the process.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.analysis import become_helper
from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.slices.spooled_source import SpooledSource, StoredRuns
from dapt_trainer.errors import InfrastructureError

NEAR, CONTAINED = 1, 2
"""Values of a finding: nearly equal to a held-out document, or containing one; contained in one. 0: neither."""
Findings = npt.NDArray[np.uint8]
WINDOW_DOCUMENTS = 4096
_INLINE_DOCUMENTS = 200_000
"""Up to this number of documents of a source are checked in this process: starting others takes longer."""
_BEAT_SECONDS = 2.0


@dataclass(frozen=True)
class HeldOutText:
    """Holds what documents are compared with."""

    shingles: HeldOutShingles
    decode: Callable[[Sequence[int]], str]
    """Returns the text of tokens, without special ones; asked for the few documents that are suspected."""


@dataclass(frozen=True)
class DocumentWindow:
    """Holds some documents of a source that follow one another."""

    sketches: StoredRuns
    tokens: StoredRuns
    is_checked: npt.NDArray[np.bool_]
    """[documents]"""


def findings_of(window: DocumentWindow, held_out: HeldOutText) -> Findings:
    """Return what is found about each document of a window, [documents]; 0 where it is not checked."""
    findings = np.zeros(len(window.is_checked), dtype=np.uint8)
    shingles = held_out.shingles
    for number in np.flatnonzero(window.is_checked).tolist():
        sketch = np.asarray(window.sketches.of(number), dtype=np.uint64)
        if shingles.is_near(sketch):
            findings[number] = NEAR
        elif shingles.contains(sketch):
            findings[number] = CONTAINED
        elif shingles.may_contain_one(sketch) and shingles.contains_one(
            held_out.decode(window.tokens.of(number).tolist())
        ):
            findings[number] = NEAR
    return findings


class HeldOutChecks:
    """Checks the documents of sources, with processes that serve all of them.

    Args:
        held_out: that they are compared with.
        beat: called while the processes work.
        processes: how many to start; None: one a core.
        inline_documents: a source of at most so many documents is checked in this process.
    """

    def __init__(
        self,
        held_out: HeldOutText,
        beat: Callable[[], None] = lambda: None,
        *,
        processes: int | None = None,
        inline_documents: int = _INLINE_DOCUMENTS,
    ) -> None:
        self._held_out = held_out
        self._beat = beat
        self._processes = processes or len(os.sched_getaffinity(0))
        self._inline_documents = inline_documents
        self._pool: ProcessPoolExecutor | None = None

    def findings(
        self, spooled: SpooledSource, is_checked: npt.NDArray[np.bool_], progress: Callable[[float], None]
    ) -> Findings:
        """Return what is found about each document of a source, [documents].

        Args:
            spooled: the source.
            is_checked: [documents] whether it matters.
            progress: called with the share of the documents that are done.

        Raises:
            InfrastructureError: one of the processes was killed.
        """
        total = len(is_checked)
        found = [np.empty(0, dtype=np.uint8)]
        for findings in self._found(_windows(spooled, is_checked), total <= self._inline_documents):
            found.append(findings)
            progress(min(1.0, WINDOW_DOCUMENTS * (len(found) - 1) / max(1, total)))
        return np.concatenate(found)

    def _found(self, windows: Iterator[DocumentWindow], is_inline: bool) -> Iterator[Findings]:
        if is_inline or self._processes == 1:
            yield from (findings_of(window, self._held_out) for window in windows)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._processes,
                # Not a fork, as in `AnalysisPool`.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(self._held_out, os.getpid()),
            )
        pending: deque[Future[Findings]] = deque()
        for window in windows:
            pending.append(self._pool.submit(check_window, window))
            if len(pending) > 2 * self._processes:
                yield self._result(pending.popleft())
        while pending:
            yield self._result(pending.popleft())

    def _result(self, future: Future[Findings]) -> Findings:
        while True:
            try:
                return future.result(timeout=_BEAT_SECONDS)
            except TimeoutError:
                self._beat()
            except BrokenProcessPool as error:
                self._beat()  # raises when a stop is requested, which may have ended the process
                raise InfrastructureError(
                    "a process that looks for held-out text was killed, most likely for memory; give prepare more "
                    "memory or fewer cores"
                ) from error

    def __enter__(self) -> HeldOutChecks:
        """Return the checks."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _windows(spooled: SpooledSource, is_checked: npt.NDArray[np.bool_]) -> Iterator[DocumentWindow]:
    for first in range(0, len(is_checked), WINDOW_DOCUMENTS):
        last = min(first + WINDOW_DOCUMENTS, len(is_checked))
        yield DocumentWindow(
            spooled.sketches.window(first, last), spooled.tokens.window(first, last), is_checked[first:last]
        )


_process_held_out: HeldOutText | None = None


def _start_process(held_out: HeldOutText, parent: int) -> None:
    global _process_held_out
    become_helper(parent)
    _process_held_out = held_out


def check_window(window: DocumentWindow) -> Findings:
    """Check a window in a process of the pool."""
    if _process_held_out is None:
        raise RuntimeError("the process was not started by HeldOutChecks")
    return findings_of(window, _process_held_out)
