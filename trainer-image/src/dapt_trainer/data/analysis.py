"""What is computed of each document alone: digest, tokens, evaluation items in it, shingles. Spread over all cores.

A batch gives the same values wherever it is computed, and batches come back in the order in which they were given, so
the data does not depend on the number of cores. Small corpora are done in this process: starting others takes longer.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.dedup.held_out_neighbours import SHINGLE_WORDS, sketches
from dapt_trainer.data.dedup.minhash import Signatures, signatures
from dapt_trainer.data.text import Hashes, WordHasher, normalized, text_digest, words
from dapt_trainer.errors import InfrastructureError
from dapt_trainer.linux import die_with_parent

BATCH_CHARACTERS = 1_000_000
BATCH_DOCUMENTS = 2_000
_INLINE_CHARACTERS = 6_000_000
"""Text below this is analysed in this process: starting others would take longer."""
_BEAT_SECONDS = 2.0


@dataclass(frozen=True)
class AnalysisSettings:
    """What every process needs."""

    tokenizer_json: str
    begin_of_text_id: int | None
    end_of_text_id: int
    contamination: ContaminationIndex
    signs: bool = False
    """Near-duplicates within the corpus are looked for: documents get signatures."""


@dataclass(frozen=True)
class AnalysedBatch:
    """Values of D documents with T tokens and K shingles in all."""

    digests: list[bytes]
    """[D] of the normalized texts; empty bytes where a text has no word or token."""
    tokens: npt.NDArray[np.uint32]
    """[T] of all documents, special tokens around each."""
    token_counts: npt.NDArray[np.int64]
    """[D]"""
    contaminated_by: npt.NDArray[np.int32]
    """[D] index of the first task with an item in the document, or -1."""
    shingles: Hashes
    """[K] sampled, sorted within a document."""
    shingle_counts: npt.NDArray[np.int64]
    """[D]"""
    signatures: Signatures | None = None
    """[D, HASHES], where they are asked for."""


class Analyst:
    """Analyses batches in one process."""

    def __init__(self, settings: AnalysisSettings) -> None:
        from tokenizers import Tokenizer

        self._settings = settings
        self._tokenizer = Tokenizer.from_str(settings.tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # a text that spells end-of-text does not end
        self._hasher = WordHasher()

    def __call__(self, texts: Sequence[str]) -> AnalysedBatch:
        """All values of a batch."""
        plain = [normalized(text) for text in texts]
        text_words = [words(text) for text in plain]
        counts = np.array([len(item) for item in text_words], dtype=np.int64)
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
            signatures=signatures(ngrams[0], counts) if self._settings.signs else None,
        )

    def _tokens(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        begin = self._settings.begin_of_text_id
        head = array("I", [] if begin is None else [begin])
        tail = array("I", [self._settings.end_of_text_id])
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
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
        processes: 1 means this process.
        inline_characters: text up to this is done in this process in any case.
        beat: called while a batch is waited for.
    """

    def __init__(
        self,
        settings: AnalysisSettings,
        *,
        processes: int | None = None,
        inline_characters: int = _INLINE_CHARACTERS,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._processes = processes or len(os.sched_getaffinity(0))
        self._inline_left = inline_characters
        self._beat = beat
        self._analyst: Analyst | None = None
        self._pool: ProcessPoolExecutor | None = None

    def analysed(self, batches: Iterable[Sequence[str]]) -> Iterator[AnalysedBatch]:
        """One result a batch, in order; at most two batches a process are under way.

        Raises:
            InfrastructureError: one of the processes was killed.
        """
        waiting: deque[Callable[[], AnalysedBatch]] = deque()
        for batch in batches:
            waiting.append(self._start(batch))
            while len(waiting) > 2 * self._processes:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()

    def _start(self, batch: Sequence[str]) -> Callable[[], AnalysedBatch]:
        characters = sum(len(text) for text in batch)
        if self._pool is None and (self._processes == 1 or characters <= self._inline_left):
            self._inline_left -= characters
            self._analyst = self._analyst or Analyst(self._settings)
            result = self._analyst(batch)
            return lambda: result
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._processes,
                # the progress server's threads do not survive a fork
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(self._settings, os.getpid()),
            )
        try:
            future = self._pool.submit(_analyse, batch)
        except BrokenProcessPool as error:
            raise _killed() from error
        return lambda: self._waited(future)

    def _waited(self, future: Future[AnalysedBatch]) -> AnalysedBatch:
        while True:
            try:
                return future.result(timeout=_BEAT_SECONDS)
            except TimeoutError:
                self._beat()
            except BrokenProcessPool as error:
                self._beat()  # heeds a wish to stop, which may have ended the process
                raise _killed() from error

    def __enter__(self) -> AnalysisPool:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _killed() -> InfrastructureError:
    return InfrastructureError(
        "a process that tokenizes was killed, most likely for memory; give prepare more memory or fewer cores"
    )


_process_analyst: Analyst | None = None


def _start_process(settings: AnalysisSettings, parent: int) -> None:
    global _process_analyst
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent decides when to stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core already
    _process_analyst = Analyst(settings)


def _analyse(texts: Sequence[str]) -> AnalysedBatch:
    assert _process_analyst is not None
    return _process_analyst(texts)
