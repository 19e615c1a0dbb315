"""Reads the sources of a side, decides about each document once, and spools the kept ones as tokens.

A document is, in this order: empty (no word or token), a duplicate (an earlier document of its side has the same
normalized text), contaminated (it contains an evaluation item), or kept. Which of the kept ones are held out can only
be decided when all are known, so their tokens and sketches are spooled on the work volume until then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TextSource, source_label
from dapt_trainer.data.analysis import AnalysedBatch, AnalysisPool, SlowTextError
from dapt_trainer.data.dedup.minhash import HASHES, Signatures, find_repeats
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.packing.data_manifest import TokenType
from dapt_trainer.data.packing.shards import Integers, mapped_array, token_dtype
from dapt_trainer.data.reading.sources import ResolvedSource
from dapt_trainer.data.reading.text_batches import Counts, RecordRules, TextBatch, TextBatches
from dapt_trainer.data.text import Hashes

KEY_SPACE = 1 << 64
"""Number of possible keys: a document belongs to a share s of all when its key is below s times this."""
SMALLEST_KEPT = 64
"""Documents of each half that are candidates because their hashes are the smallest, so that no half is ever empty: many
of them may turn out to stand on the other side too, or to be too short."""
MIN_HELD_OUT_TOKENS = 2
"""Of a document of one token nothing may be scored (`packing.leads`)."""
TINY_TOKENS = 16
"""Documents of fewer tokens are counted: there is little in them to predict from."""
_KEY_BYTES = 8


@dataclass(frozen=True)
class HeldOutCandidate:
    """Describes a kept document that may be held out."""

    key: int
    half: int
    source: int
    """Index of the source in the side's list."""
    document: int
    """Number among the source's kept documents."""
    tokens: int
    """Number of tokens without special ones."""
    text_offset: int
    """Offset in the side's file of candidate texts."""


@dataclass(frozen=True)
class SpooledSource:
    """Holds the kept documents of one source: counts and keys in memory, tokens and sketches on disk."""

    side: Side
    index: int
    config: TextSource
    counts: Counts
    token_counts: npt.NDArray[np.int64]
    """[documents] tokens of each, special ones included."""
    keys: Hashes
    """[documents] seeded hash of the normalized text."""
    sketch_counts: npt.NDArray[np.int64]
    """[documents] hashes in the sketch of each."""
    tokens: Integers
    """[all tokens], memory-mapped."""
    sketches: Hashes
    """[all sketches], memory-mapped."""
    signatures: Signatures
    """[documents, HASHES], memory-mapped; [0, HASHES] unless near-duplicates are searched for."""
    texts: Path | None = None
    """File with the documents as JSON strings, one a line; None unless they are tokenized again."""
    is_repeat: npt.NDArray[np.bool_] | None = None
    """[documents] whether each is a near-duplicate of an earlier document of the side; None: not searched for."""

    def sketch(self, document: int) -> Hashes:
        """Return the sketch of one of its documents."""
        end = int(self._sketch_ends[document])
        return np.asarray(self.sketches[end - int(self.sketch_counts[document]) : end])

    @cached_property
    def _sketch_ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.sketch_counts)

    @property
    def name(self) -> str:
        """Return the source's name, for example `domain-0`, which is also the folder of its shard."""
        return f"{self.side}-{self.index}"

    @property
    def label(self) -> str:
        """Return the source as people know it from the manifest, for example `domain[0]`."""
        return source_label(self.side, self.index)

    @property
    def repeats(self) -> int:
        """Return how many of its documents are near-duplicates of earlier ones."""
        return 0 if self.is_repeat is None else int(self.is_repeat.sum())


@dataclass(frozen=True)
class ReadingRules:
    """Holds what decides about a document."""

    seed: int
    deduplicate: bool
    held_out_fraction: float
    bad_records_max_fraction: float
    token_type: TokenType
    special_tokens: int
    """Number of a document's special tokens: end-of-text, and begin-of-text where there is one."""
    tasks: tuple[str, ...]
    """Names of the tasks that contamination is counted by."""
    keeps_texts: bool = False
    """Whether the texts of kept documents are spooled too: an extended tokenizer has to read them again."""


class SideReader:
    """Reads the sources of one side in order, and drops duplicates over all of them."""

    def __init__(self, side: Side, folder: Path, rules: ReadingRules, pool: AnalysisPool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._side: Side = side
        self._folder = folder
        self._rules = rules
        self._pool = pool
        self._seen_keys: set[int] = set()
        self._smallest_keys: list[list[int]] = [[], []]
        self._threshold = int(rules.held_out_fraction * KEY_SPACE)
        self.candidates: list[HeldOutCandidate] = []
        self._candidate_texts_path = folder / "candidates.jsonl"
        self._candidate_texts = self._candidate_texts_path.open("wb")

    def read(
        self,
        index: int,
        config: TextSource,
        resolved: ResolvedSource,
        problems: Problems,
        progress: Callable[[int], None],
    ) -> SpooledSource:
        """Read one source to its end or its `max_tokens`.

        Args:
            index: of the source in the side's list.
            config: as the user wrote it.
            resolved: its files.
            problems: gets one sentence for each kind of fault of this source.
            progress: called with the number of tokens kept so far.
        """
        counts = Counts()
        rules = self._rules
        record_rules = RecordRules(rules.bad_records_max_fraction, rules.seed)
        reader = TextBatches(f"spec.corpus.{self._side}[{index}]", config, resolved, record_rules, problems)
        name = f"{self._side}-{index}"
        token_counts, keys, sketch_counts = array("q"), array("Q"), array("q")
        kept_tokens = 0
        limit = config.max_tokens
        tokens_path, sketches_path = self._folder / f"{name}.tokens", self._folder / f"{name}.sketches"
        signatures_path = self._folder / f"{name}.signatures"
        texts_path = self._folder / f"{name}.texts" if rules.keeps_texts else None
        dtype = token_dtype(rules.token_type)
        with (
            tokens_path.open("wb") as tokens_file,
            sketches_path.open("wb") as sketches_file,
            signatures_path.open("wb") as signatures_file,
            texts_path.open("wb") if texts_path else contextlib.nullcontext() as texts_file,
        ):
            for batch, analysis in self._analysed(reader):
                counts.records += batch.records
                counts.bad_records += batch.bad_records
                kept, is_full = [], False
                for number, key, half in self._kept_documents(analysis, counts):
                    size = int(analysis.token_counts[number])
                    tokens, text = size - rules.special_tokens, batch.texts[number]
                    if tokens >= MIN_HELD_OUT_TOKENS and self._may_be_held_out(key, half):
                        offset = self._candidate_texts.tell()
                        # JSON escapes line breaks, so that each text is one line.
                        self._candidate_texts.write(json.dumps(text).encode() + b"\n")
                        self.candidates.append(
                            HeldOutCandidate(key, half, index, len(token_counts), tokens, offset)
                        )
                    counts.tiny += tokens < TINY_TOKENS
                    counts.languages.add(key, text, tokens)
                    kept.append(number)
                    token_counts.append(size)
                    keys.append(key)
                    sketch_counts.append(int(analysis.shingle_counts[number]))
                    kept_tokens += size
                    if limit is not None and kept_tokens >= limit:
                        is_full = True
                        break
                _write_documents(tokens_file, analysis.tokens.astype(dtype), analysis.token_counts, kept)
                _write_documents(sketches_file, analysis.shingles, analysis.shingle_counts, kept)
                if analysis.signatures is not None:
                    signatures_file.write(analysis.signatures[kept].tobytes())
                if texts_file is not None:
                    texts_file.writelines(json.dumps(batch.texts[number]).encode() + b"\n" for number in kept)
                progress(kept_tokens)
                if is_full:
                    break
        reader.report_bad_records(counts)
        return SpooledSource(
            side=self._side,
            index=index,
            config=config,
            counts=counts,
            token_counts=np.frombuffer(token_counts, dtype=np.int64)
            if token_counts
            else np.empty(0, np.int64),
            keys=np.frombuffer(keys, dtype=np.uint64) if keys else np.empty(0, np.uint64),
            sketch_counts=np.frombuffer(sketch_counts, dtype=np.int64) if keys else np.empty(0, np.int64),
            tokens=mapped_array(tokens_path, dtype),
            sketches=mapped_array(sketches_path, np.dtype(np.uint64)),
            texts=texts_path,
            signatures=mapped_array(signatures_path, np.dtype(np.uint32)).reshape(-1, HASHES),
        )

    def close(self) -> None:
        """Finish the file of candidate texts; call it after the last source."""
        self._candidate_texts.close()

    def __enter__(self) -> SideReader:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file of candidate texts."""
        self.close()

    def candidate_text(self, candidate: HeldOutCandidate) -> str:
        """Return the text of a candidate; call it after `close`."""
        with self._candidate_texts_path.open("rb") as file:
            file.seek(candidate.text_offset)
            text: str = json.loads(file.readline())
            return text

    def _analysed(self, reader: TextBatches) -> Iterator[tuple[TextBatch, AnalysedBatch]]:
        # The pool reads ahead and returns its results in order, so the texts of a result are the oldest in the queue.
        pending: deque[TextBatch] = deque()

        def texts_of_batches() -> Iterator[Sequence[str]]:
            for batch in reader:
                pending.append(batch)
                yield batch.texts

        try:
            for analysis in self._pool.analysed(texts_of_batches()):
                yield pending.popleft(), analysis
        except SlowTextError as error:
            raise reader.slow_text(pending[error.batch].locations[error.text], error.seconds) from None

    def _kept_documents(self, analysis: AnalysedBatch, counts: Counts) -> Iterator[tuple[int, int, int]]:
        """Yield (number in the batch, key, half) of each document that is kept; count the others."""
        seed = self._rules.seed.to_bytes(8, "little", signed=True)
        for number, digest in enumerate(analysis.digests):
            if not digest or analysis.token_counts[number] <= self._rules.special_tokens:
                counts.empty += 1
                continue
            # The half comes from a byte that the key does not use, so it is independent of being held out.
            keyed_hash = hashlib.blake2b(digest, digest_size=_KEY_BYTES + 1, key=seed).digest()
            key = int.from_bytes(keyed_hash[:_KEY_BYTES], "little")
            if self._rules.deduplicate:
                if key in self._seen_keys:
                    counts.duplicates += 1
                    continue
                # Before the search for items: a copy of a contaminated document counts as a duplicate.
                self._seen_keys.add(key)
            task = int(analysis.contaminated_by[number])
            if task >= 0:
                counts.contaminated += 1
                counts.contaminated_by[self._rules.tasks[task]] += 1
                continue
            yield number, key, keyed_hash[_KEY_BYTES] & 1

    def _may_be_held_out(self, key: int, half: int) -> bool:
        """Return whether a document is a candidate: below the threshold, or among the smallest of its half so far."""
        smallest = self._smallest_keys[half]
        if len(smallest) < SMALLEST_KEPT or key < smallest[-1]:
            self._smallest_keys[half] = sorted([*smallest, key])[:SMALLEST_KEPT]
            return True
        return key < self._threshold


def mark_repeats(
    spools: Sequence[SpooledSource], folder: Path, beat: Callable[[], None]
) -> list[SpooledSource]:
    """Return a side's sources with a mark on each document that is a near-duplicate of an earlier one.

    Raises:
        InfrastructureError: one of the processes was killed.
    """
    marks = find_repeats([spool.signatures for spool in spools], folder, beat=beat)
    shutil.rmtree(folder)
    return [
        dataclasses.replace(spool, is_repeat=is_repeat)
        for spool, is_repeat in zip(spools, marks, strict=True)
    ]


def _write_documents(
    file: BinaryIO, values: Integers, counts: npt.NDArray[np.int64], numbers: list[int]
) -> None:
    """Write the values of the documents of a batch that have these numbers, in order."""
    if len(numbers) == len(counts):
        file.write(values.tobytes())
        return
    ends = np.cumsum(counts)
    for number in numbers:
        file.write(values[ends[number] - counts[number] : ends[number]].tobytes())
