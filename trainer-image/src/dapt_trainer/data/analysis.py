"""Computes on all cores what depends on one document alone: digest, tokens, evaluation items in it, shingles.

A batch gives the same values in every process, and batches are returned in the order in which they were given, so the
data does not depend on the number of cores. A small corpus is analysed in this process: starting others takes longer.

A tokenizer may come from anybody, and so may the text on which it takes for ever. Every batch has a limit of processor
time; over it the batch is analysed again, text by text in a process of its own, to name the text.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.dedup.held_out_neighbours import SHINGLE_WORDS, sketches
from dapt_trainer.data.dedup.minhash import Signatures, signatures
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.plain_tokenizer import plain_tokenizer
from dapt_trainer.data.text import Hashes, WordHasher, normalized, text_digest, words
from dapt_trainer.errors import InfrastructureError, InputError
from dapt_trainer.limited_time import OutOfTimeError, limit_seconds, within_limit
from dapt_trainer.linux import die_with_parent, limit_processor_time

BATCH_CHARACTERS = 1_000_000
BATCH_DOCUMENTS = 2_000
_INLINE_CHARACTERS = 6_000_000
"""Text up to this length is analysed in this process: starting others would take longer."""
_BEAT_SECONDS = 2.0


@dataclass(frozen=True)
class AnalysisSettings:
    """Holds what every process needs."""

    tokenizer_json: str
    begin_of_text_id: int | None
    end_of_text_id: int
    contamination: ContaminationIndex
    computes_signatures: bool = False
    """Whether documents get signatures, by which near-duplicates within the corpus are found."""


@dataclass(frozen=True)
class AnalysedBatch:
    """Holds the values of D documents with T tokens and K shingles in total."""

    digests: list[bytes]
    """[D] digests of the normalized texts; empty bytes where a text has no word or token."""
    tokens: npt.NDArray[np.uint32]
    """[T] tokens of all documents, with the special tokens of each."""
    token_counts: npt.NDArray[np.int64]
    """[D]"""
    contaminated_by: npt.NDArray[np.int32]
    """[D] index of the first task with an item in the document, or -1."""
    shingles: Hashes
    """[K] sampled shingles, sorted within a document."""
    shingle_counts: npt.NDArray[np.int64]
    """[D]"""
    signatures: Signatures | None = None
    """[D, HASHES]; None unless the settings ask for them."""


class SlowTextError(Exception):
    """Reports a text whose analysis exceeds its limit of processor time."""

    def __init__(self, batch: int, text: int, seconds: int) -> None:
        super().__init__(f"text {text} of batch {batch} takes more than {seconds} seconds of processor time")
        self.batch = batch
        """Number among the batches that no result was yielded of."""
        self.text = text
        self.seconds = seconds


class Analyst:
    """Analyses batches in one process."""

    def __init__(self, settings: AnalysisSettings) -> None:
        self._settings = settings
        self._tokenizer = plain_tokenizer(settings.tokenizer_json)
        self._hasher = WordHasher()

    def __call__(self, texts: Sequence[str]) -> AnalysedBatch:
        """Return all values of a batch."""
        plain = [normalized(text) for text in texts]
        text_words = [words(text) for text in plain]
        counts = np.array([len(item) for item in text_words], dtype=np.int64)
        # The n-grams run over all words of the batch in one pass; those that cross the end of a document are dropped
        # below, where the counts say how long each document is.
        hashes = self._hasher.hashes([word for item in text_words for word in item])
        lengths = [SHINGLE_WORDS, *self._settings.contamination.lengths]
        ngrams = self._hasher.ngrams(hashes, lengths)
        shingles, shingle_counts = sketches(ngrams[0], counts)
        tokens, token_counts = self._tokens(texts)
        return AnalysedBatch(
            digests=[text_digest(text) if text else b"" for text in plain],
            tokens=tokens,
            token_counts=token_counts,
            contaminated_by=self._settings.contamination.find(ngrams[1:], counts),
            shingles=shingles,
            shingle_counts=shingle_counts,
            signatures=signatures(ngrams[0], counts) if self._settings.computes_signatures else None,
        )

    def _tokens(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        begin = self._settings.begin_of_text_id
        head = array("I", [] if begin is None else [begin])
        tail = array("I", [self._settings.end_of_text_id])
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:
            # The library raises plain Exception, and where it panics a class that is none.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise InputError(
                f"spec.model.source: its tokenizer fails at a text of the corpus ({first_line(error)}); use a model "
                "with another tokenizer"
            ) from None
        parts = array("I")
        counts = np.empty(len(texts), dtype=np.int64)
        for number, encoding in enumerate(encoded):
            before = len(parts)
            parts += head
            parts += array("I", encoding.ids)
            parts += tail
            counts[number] = len(parts) - before
        return np.array(parts, dtype=np.uint32), counts


class AnalysisPool:
    """Analyses a stream of batches on all cores.

    Args:
        settings: for every process.
        processes: how many to start; 1 means this process, None one a core.
        inline_characters: text up to this length is analysed in this process in any case.
        limit: returns the seconds of processor time for texts with that number of characters.
        beat: called while the pool waits for a batch.
    """

    def __init__(
        self,
        settings: AnalysisSettings,
        *,
        processes: int | None = None,
        inline_characters: int = _INLINE_CHARACTERS,
        limit: Callable[[int], int] = limit_seconds,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._processes = processes or len(os.sched_getaffinity(0))
        self._inline_left = inline_characters
        self._limit = limit
        self._beat = beat
        self._analyst: Analyst | None = None
        self._pool: ProcessPoolExecutor | None = None

    def analysed(self, batches: Iterable[Sequence[str]]) -> Iterator[AnalysedBatch]:
        """Yield one result for each batch, in order.

        Raises:
            SlowTextError: a text takes too long, most likely in the tokenizer, which may be anybody's.
            InfrastructureError: one of the processes was killed.
        """
        pending: deque[_Pending] = deque()
        try:
            for batch in batches:
                # Before it starts: an error must find it among those that no result was yielded of.
                pending.append(_Pending(batch))
                self._start(pending[-1])
                # Two batches a process keep all of them busy and bound the text in memory.
                while len(pending) > 2 * self._processes:
                    yield self._result(pending)
            while pending:
                yield self._result(pending)
        except (BrokenProcessPool, OutOfTimeError) as error:
            self._beat()  # raises when a stop is requested, which may have ended the process
            raise self._cause([entry.texts for entry in pending]) from error

    def _result(self, pending: deque[_Pending]) -> AnalysedBatch:
        future = pending[0].future
        while True:
            try:
                result = future.result(timeout=_BEAT_SECONDS)
                break
            except TimeoutError:
                self._beat()
        pending.popleft()
        return result

    def _start(self, entry: _Pending) -> None:
        characters = sum(len(text) for text in entry.texts)
        limit = self._limit(characters)
        if self._pool is None and (self._processes == 1 or characters <= self._inline_left):
            self._inline_left -= characters
            self._analyst = self._analyst or Analyst(self._settings)
            analyst = self._analyst
            entry.future.set_result(within_limit(lambda: analyst(entry.texts), limit, self._beat))
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._processes,
                # Not a fork: the threads of the progress server do not survive one.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(self._settings, os.getpid()),
            )
        entry.future = self._pool.submit(analyse, entry.texts, limit)

    def _cause(self, batches: Sequence[Sequence[str]]) -> SlowTextError | InfrastructureError:
        """Return why a process ended: analyse batches once more in one that says how far it has come.

        Args:
            batches: that no result was yielded of.
        """
        for number, texts in enumerate(batches):
            limit = self._limit(sum(len(text) for text in texts))
            slowest = slowest_text(self._settings, texts, limit, self._beat)
            if slowest is not None:
                return SlowTextError(number, slowest, limit)
        return process_killed_error()

    def __enter__(self) -> AnalysisPool:
        """Return the pool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclass
class _Pending:
    """Holds a batch that no result was yielded of yet."""

    texts: Sequence[str]
    future: Future[AnalysedBatch] = field(default_factory=Future)


def process_killed_error() -> InfrastructureError:
    """Return the error about a process that the kernel has killed."""
    return InfrastructureError(
        "a process that tokenizes was killed, most likely for memory; give prepare more memory or fewer cores"
    )


_process_analyst: Analyst | None = None


def _start_process(settings: AnalysisSettings, parent: int) -> None:
    global _process_analyst
    become_helper(parent)
    _process_analyst = Analyst(settings)


def become_helper(parent: int) -> None:
    """Make this process one that ends with its parent, and only by its decision."""
    die_with_parent(parent)
    # Only the parent decides when to stop: it ends its processes itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one process a core already


def analyse(texts: Sequence[str], limit: int) -> AnalysedBatch:
    """Analyse a batch in a process of the pool, which the kernel ends at the limit."""
    if _process_analyst is None:
        raise RuntimeError("the process was not started by AnalysisPool")
    limit_processor_time(limit)
    return _process_analyst(texts)


def slowest_text(
    settings: AnalysisSettings, texts: Sequence[str], limit: int, beat: Callable[[], None]
) -> int | None:
    """Return which text of a batch takes the most time, from a process of its own; None: all are within the limit.

    Args:
        settings: as of the pool.
        texts: of the batch.
        limit: seconds of processor time for all of them.
        beat: called while the process runs.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_time_texts, args=(settings, texts, limit, os.getpid(), sender))
    process.start()
    sender.close()
    seconds: list[float] = []
    try:
        while True:
            if receiver.poll(_BEAT_SECONDS):
                seconds.append(receiver.recv())
            else:
                beat()
    except EOFError:
        process.join()
    finally:
        process.kill()
        receiver.close()
    if process.exitcode != -signal.SIGXCPU:
        return None
    seconds.append(limit - sum(seconds))  # of the text at which the process ended
    return max(range(len(seconds)), key=seconds.__getitem__)


def _time_texts(
    settings: AnalysisSettings, texts: Sequence[str], limit: int, parent: int, sender: Connection
) -> None:
    become_helper(parent)
    analyst = Analyst(settings)
    limit_processor_time(limit)
    for text in texts:
        started = time.process_time()
        analyst([text])
        sender.send(time.process_time() - started)
