"""Reading the sources: each document judged once, kept ones spooled as tokens until all sources are read.

A document is, in this order: empty (no word or token), a duplicate (its normalized text came before on its side),
contaminated (it contains an evaluation item), or kept. Which of the kept ones are held out can only be said when all
are known, so their tokens and sketches wait in a spool on the work volume.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.analysis import AnalysedBatch, AnalysisPool
from dapt_trainer.data.dedup.minhash import HASHES, find_repeats
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.packing.data_manifest import TokenType
from dapt_trainer.data.reading.sources import ResolvedSource
from dapt_trainer.data.reading.text_batches import Counts, TextBatch, TextBatches
from dapt_trainer.data.text import Hashes

_KEY_SPACE = 1 << 64
SMALLEST_KEPT = 3
"""Documents a half whose text is kept for being the first by hash, so that no half is ever empty."""


@dataclass(frozen=True)
class HeldOutCandidate:
    """A kept document that may be held out."""

    key: int
    half: int
    source: int
    """Place in the side's list."""
    document: int
    """Number among the source's kept documents."""
    tokens: int
    """Without special tokens."""
    text_offset: int
    """In the side's file of candidate texts."""


@dataclass
class SpooledSource:
    """Kept documents of one source: arrays in memory, tokens and sketches on disk."""

    side: Side
    index: int
    config: TextSource
    counts: Counts
    token_counts: npt.NDArray[np.int64]
    """[documents] with special tokens."""
    keys: Hashes
    """[documents] seeded hash of the normalized text."""
    sketch_counts: npt.NDArray[np.int64]
    tokens: Any
    """[all tokens], memory-mapped."""
    sketches: Any
    """[all sketches], memory-mapped."""
    texts: Path | None = None
    """The documents as JSON strings, one a line, where they are tokenized once more."""
    signatures: Any = None
    """[documents, HASHES], memory-mapped, where near-duplicates are looked for."""
    later: npt.NDArray[np.bool_] | None = None
    """[documents] which are near-duplicates of an earlier document of the side; None: not looked for."""

    @property
    def name(self) -> str:
        """`domain-0`: also the folder of the shard."""
        return f"{self.side}-{self.index}"

    @property
    def repeats(self) -> int:
        """How many of its documents are near-duplicates of earlier ones."""
        return 0 if self.later is None else int(self.later.sum())


@dataclass(frozen=True)
class Rules:
    """What decides about a document."""

    seed: int
    deduplicate: bool
    held_out_fraction: float
    bad_records_max_fraction: float
    token_type: TokenType
    special_tokens: int
    """A document's special tokens: end-of-text, and begin-of-text where there is one."""
    tasks: tuple[str, ...]
    """Names that contamination is counted under."""
    keeps_texts: bool = False
    """The texts of kept documents are spooled too: a tokenizer that grows has to read them again."""


class SideReader:
    """Reads the sources of one side in order; duplicates are looked for over all of them."""

    def __init__(self, side: Side, folder: Path, rules: Rules, pool: AnalysisPool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._side: Side = side
        self._folder = folder
        self._rules = rules
        self._pool = pool
        self._seen: set[int] = set()
        self._smallest: list[list[int]] = [[], []]
        self._threshold = int(rules.held_out_fraction * _KEY_SPACE)
        self.candidates: list[HeldOutCandidate] = []
        self.texts = folder / "candidates.jsonl"
        self._texts = self.texts.open("wb")

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
            index: place in the side's list.
            config: as the user wrote it.
            resolved: its files.
            problems: gets one sentence for each kind of fault of this source.
            progress: called with the tokens kept so far.
        """
        counts = Counts()
        reader = TextBatches(
            f"spec.corpus.{self._side}[{index}]",
            config,
            resolved,
            self._rules.bad_records_max_fraction,
            problems,
        )
        name = f"{self._side}-{index}"
        token_counts, keys, sketch_counts = array("q"), array("Q"), array("q")
        kept_tokens = 0
        limit = config.max_tokens
        paths = self._folder / f"{name}.tokens", self._folder / f"{name}.sketches"
        token_type = np.dtype(self._rules.token_type).newbyteorder("<")
        texts = self._folder / f"{name}.texts" if self._rules.keeps_texts else None
        signatures = self._folder / f"{name}.signatures"
        with (
            paths[0].open("wb") as tokens_file,
            paths[1].open("wb") as sketches_file,
            signatures.open("wb") as signatures_file,
            texts.open("wb") if texts else contextlib.nullcontext() as texts_file,
        ):
            for read, batch in self._analysed(reader):
                counts.records += read.records
                counts.bad_records += read.bad_records
                kept, full = [], False
                for number, key, half in self._judged(batch, counts):
                    size = int(batch.token_counts[number])
                    self._note_candidate(key, half, index, len(token_counts), size, read.texts[number])
                    counts.tiny += size - self._rules.special_tokens < 16
                    counts.languages.note(key, read.texts[number], size - self._rules.special_tokens)
                    kept.append(number)
                    token_counts.append(size)
                    keys.append(key)
                    sketch_counts.append(int(batch.shingle_counts[number]))
                    kept_tokens += size
                    if limit is not None and kept_tokens >= limit:
                        full = True
                        break
                _write_chosen(tokens_file, batch.tokens.astype(token_type), batch.token_counts, kept)
                _write_chosen(sketches_file, batch.shingles, batch.shingle_counts, kept)
                if batch.signatures is not None:
                    signatures_file.write(batch.signatures[kept].tobytes())
                if texts_file is not None:
                    texts_file.writelines(json.dumps(read.texts[number]).encode() + b"\n" for number in kept)
                progress(kept_tokens)
                if full:
                    break
        reader.judge_bad_records(counts)
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
            tokens=_mapped(paths[0], token_type),
            sketches=_mapped(paths[1], np.dtype(np.uint64)),
            texts=texts,
            signatures=_mapped(signatures, np.dtype(np.uint32)).reshape(-1, HASHES),
        )

    def close(self) -> None:
        """No more sources come."""
        self._texts.close()

    def __enter__(self) -> SideReader:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        self.close()

    def candidate_text(self, candidate: HeldOutCandidate) -> str:
        """The text of a candidate, after `close`."""
        with self.texts.open("rb") as file:
            file.seek(candidate.text_offset)
            text: str = json.loads(file.readline())
            return text

    def _analysed(self, reader: TextBatches) -> Iterator[tuple[TextBatch, AnalysedBatch]]:
        under_way: deque[TextBatch] = deque()

        def noted() -> Iterator[Sequence[str]]:
            for read in reader:
                under_way.append(read)
                yield read.texts

        for batch in self._pool.analysed(noted()):
            yield under_way.popleft(), batch

    def _judged(self, batch: AnalysedBatch, counts: Counts) -> Iterator[tuple[int, int, int]]:
        """(place in the batch, key, half) of each document that is kept."""
        seed = self._rules.seed.to_bytes(8, "little", signed=True)
        for number, digest in enumerate(batch.digests):
            if not digest or batch.token_counts[number] <= self._rules.special_tokens:
                counts.empty += 1
                continue
            place = hashlib.blake2b(digest, digest_size=9, key=seed).digest()
            key = int.from_bytes(place[:8], "little")
            if self._rules.deduplicate:
                if key in self._seen:
                    counts.duplicates += 1
                    continue
                self._seen.add(key)
            task = int(batch.contaminated_by[number])
            if task >= 0:
                counts.contaminated += 1
                counts.contaminated_by[self._rules.tasks[task]] += 1
                continue
            yield number, key, place[8] & 1

    def _note_candidate(self, key: int, half: int, source: int, document: int, size: int, text: str) -> None:
        smallest = self._smallest[half]
        if len(smallest) < SMALLEST_KEPT or key < smallest[-1]:
            self._smallest[half] = sorted([*smallest, key])[:SMALLEST_KEPT]
        elif key >= self._threshold:
            return
        offset = self._texts.tell()
        self._texts.write(json.dumps(text).encode() + b"\n")
        tokens = size - self._rules.special_tokens
        self.candidates.append(HeldOutCandidate(key, half, source, document, tokens, offset))


def note_repeats(spools: Sequence[SpooledSource], folder: Path, beat: Callable[[], None]) -> None:
    """Say of each of a side's documents whether it is a near-duplicate of an earlier one.

    Raises:
        InfrastructureError: one of the processes was killed.
    """
    later = find_repeats([spool.signatures for spool in spools], folder, beat=beat)
    shutil.rmtree(folder)
    for spool, own in zip(spools, later, strict=True):
        spool.later = own


def first_ones(
    candidates: Sequence[HeldOutCandidate], spools: Sequence[SpooledSource]
) -> list[HeldOutCandidate]:
    """The candidates that are no near-duplicates of earlier documents."""
    later = {spool.index: spool.later for spool in spools}
    return [
        candidate
        for candidate in candidates
        if (own := later[candidate.source]) is None or not own[candidate.document]
    ]


def _write_chosen(file: Any, values: Any, counts: npt.NDArray[np.int64], chosen: list[int]) -> None:
    """Write the values of the chosen documents of a batch, in order."""
    if len(chosen) == len(counts):
        file.write(values.tobytes())
        return
    ends = np.cumsum(counts)
    for number in chosen:
        file.write(values[ends[number] - counts[number] : ends[number]].tobytes())


def _mapped(path: Path, dtype: Any) -> Any:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)
