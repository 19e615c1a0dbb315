"""Reads a slice of the corpus, and leaves its documents in a folder of the work volume.

Documents that occur twice in a slice are dropped here. What stands in an earlier slice too is only found when all
slices are put together (`merge`), so each slice keeps whatever might be needed then.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.analysis import AnalysedBatch, AnalysisPool, SlowTextError
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.packing.data_manifest import ShardFile, TokenType
from dapt_trainer.data.packing.shards import HashingFile, Integers, token_dtype
from dapt_trainer.data.reading.documents import Document, read_parts
from dapt_trainer.data.reading.languages import FIRST_DOCUMENTS, SAMPLE_EVERY, language_of
from dapt_trainer.data.reading.text_batches import Counts, RecordRules, TextBatch, TextBatches
from dapt_trainer.data.slices.cut import CorpusSlice
from dapt_trainer.data.slices.records import (
    CANDIDATES,
    DOCUMENT,
    DOCUMENTS,
    SIGNATURES,
    SKETCHES,
    TEXTS,
    TOKENS,
    SliceRecord,
    StoredBadRecord,
    write_record,
)
from dapt_trainer.data.slices.spooled_source import KEY_SPACE, MIN_HELD_OUT_TOKENS, SMALLEST_KEPT
from dapt_trainer.data.text import Hashes, normalized, text_digest

_KEY_BYTES = 8
DocumentRow = tuple[int, int, int, int, int]
"""Fields of a `DOCUMENT`."""


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
    keeps_signatures: bool = False
    """Whether signatures are spooled too: near-duplicates are searched for by them."""

    @property
    def key_threshold(self) -> int:
        """Return the key below which a document may be held out."""
        return int(self.held_out_fraction * KEY_SPACE)

    def key_and_half(self, digest: bytes) -> tuple[int, int]:
        """Return the key of a normalized text, and the half that it would be held out in."""
        seed = self.seed.to_bytes(8, "little", signed=True)
        # The half comes from a byte that the key does not use, so it is independent of being held out.
        keyed_hash = hashlib.blake2b(digest, digest_size=_KEY_BYTES + 1, key=seed).digest()
        return int.from_bytes(keyed_hash[:_KEY_BYTES], "little"), keyed_hash[_KEY_BYTES] & 1


class SmallestKeys:
    """Decides which documents are candidates for held-out text: those below a threshold, and the smallest so far."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._smallest: list[list[int]] = [[], []]

    def takes(self, key: int, half: int) -> bool:
        """Return whether a document is below the threshold, or among the smallest of its half so far; count it."""
        smallest = self._smallest[half]
        if len(smallest) < SMALLEST_KEPT or key < smallest[-1]:
            self._smallest[half] = sorted([*smallest, key])[:SMALLEST_KEPT]
            return True
        return key < self._threshold

    def may_take(self, keys: Hashes, halves: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return for documents that come next which of them `takes` may take; all others it would not even count."""
        bounds = [
            KEY_SPACE - 1 if len(smallest) < SMALLEST_KEPT else max(smallest[-1], self._threshold)
            for smallest in self._smallest
        ]
        limits = np.array([min(bound, KEY_SPACE - 1) for bound in bounds], dtype=np.uint64)
        return keys <= limits[halves]


@dataclass
class _Reading:
    """Collects what one slice leaves."""

    counts: Counts = field(default_factory=Counts)
    documents: int = 0
    candidates: list[tuple[int, int]] = field(default_factory=list)
    languages: list[tuple[int, int, str]] = field(default_factory=list)
    tokens: int = 0
    kept: int = 0


class SliceReader:
    """Reads slices with the processes of one pool."""

    def __init__(self, rules: ReadingRules, pool: AnalysisPool) -> None:
        self._rules = rules
        self._pool = pool

    def read(
        self,
        corpus_slice: CorpusSlice,
        folder: Path,
        *,
        identity: str = "",
        run_key: str = "",
        key: bytes = b"",
        known_keys: Hashes | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> SliceRecord:
        """Read one slice to its end, or a source to its `max_tokens`.

        Args:
            corpus_slice: the slice.
            folder: that gets its files; made here.
            identity: of its content, for the record.
            run_key: of the run, for the record.
            key: that signs the record; empty: it is not signed.
            known_keys: sorted hashes of documents that were read before and are duplicates here; None: none.
            progress: called with the number of tokens kept so far.

        Raises:
            InputError: a text takes too long, or the tokenizer fails at it.
        """
        rules, source = self._rules, corpus_slice.source
        reader = TextBatches(
            source.field,
            source.config,
            source.files,
            RecordRules(rules.bad_records_max_fraction, rules.seed),
            Problems(),
            parts=corpus_slice.parts or None,
            is_beginning=corpus_slice.number == 0,
        )
        folder.mkdir(parents=True)
        reading = _Reading()
        with _SliceFiles(folder, rules) as files:
            self._read_documents(reader, source.config.max_tokens, reading, files, known_keys, progress)
            stored = files.close()
        findings = reader.findings(reading.counts)
        record = SliceRecord(
            identity=identity,
            records=findings.records,
            bad_records=findings.bad_records,
            empty=reading.counts.empty,
            duplicates=reading.counts.duplicates,
            documents=reading.documents,
            tokens=reading.tokens,
            shown=tuple(
                StoredBadRecord(location=bad.record.location, reason=bad.record.reason, records=bad.records)
                for bad in findings.shown
            ),
            failures=findings.failures,
            languages=tuple(reading.languages),
            candidates=tuple(reading.candidates),
            files=stored,
        )
        write_record(folder, record, run_key, key)
        return record

    def _read_documents(
        self,
        reader: TextBatches,
        max_tokens: int | None,
        reading: _Reading,
        files: _SliceFiles,
        known_keys: Hashes | None,
        progress: Callable[[int], None],
    ) -> None:
        rules = self._rules
        smallest = SmallestKeys(rules.key_threshold)
        seen: set[int] = set()
        for batch, analysis in self._analysed(reader):
            reading.counts.records += batch.records
            reading.counts.bad_records += batch.bad_records
            rows: list[DocumentRow] = []
            kept, is_full = [], False
            for number, key, half in self._documents(analysis, reading.counts, seen, known_keys):
                task, row = int(analysis.contaminated_by[number]), reading.documents
                reading.documents += 1
                if task >= 0:
                    rows.append((key, 0, 0, task, half))
                    continue
                size, text = int(analysis.token_counts[number]), batch.texts[number]
                if size - rules.special_tokens >= MIN_HELD_OUT_TOKENS and smallest.takes(key, half):
                    reading.candidates.append((row, files.write_candidate(text)))
                if reading.kept < FIRST_DOCUMENTS or key % SAMPLE_EVERY == 0:
                    reading.languages.append((row, len(text), language_of(text)))
                rows.append((key, size, int(analysis.shingle_counts[number]), -1, half))
                reading.kept += 1
                reading.tokens += size
                kept.append(number)
                if max_tokens is not None and reading.tokens >= max_tokens:
                    is_full = True
                    break
            files.write(batch, analysis, rows, kept)
            progress(reading.tokens)
            if is_full:
                break

    def _documents(
        self, analysis: AnalysedBatch, counts: Counts, seen: set[int], known_keys: Hashes | None
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (number in the batch, key, half) of each document that is no duplicate; count the others."""
        for number, digest in enumerate(analysis.digests):
            if not digest or analysis.token_counts[number] <= self._rules.special_tokens:
                counts.empty += 1
                continue
            key, half = self._rules.key_and_half(digest)
            if self._rules.deduplicate:
                # Before the search for items: a copy of a contaminated document counts as a duplicate.
                if key in seen or _is_known(key, known_keys):
                    counts.duplicates += 1
                    continue
                seen.add(key)
            yield number, key, half

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


def texts_by_key(corpus_slice: CorpusSlice, rules: ReadingRules, wanted: set[int]) -> dict[int, str]:
    """Return the first text of a slice with each of these keys; the slice is read up to the last of them."""
    source, found = corpus_slice.source, dict[int, str]()
    for record in read_parts(source.files, corpus_slice.parts, source.config.text_field):
        if len(found) == len(wanted):
            break
        if isinstance(record, Document):
            key, _ = rules.key_and_half(text_digest(normalized(record.text)))
            if key in wanted:
                found.setdefault(key, record.text)
    return found


def _is_known(key: int, known_keys: Hashes | None) -> bool:
    if known_keys is None or not len(known_keys):
        return False
    place = int(np.searchsorted(known_keys, np.uint64(key)))
    return place < len(known_keys) and int(known_keys[place]) == key


class _SliceFiles:
    """Writes the files of a slice, and hashes them on the way."""

    def __init__(self, folder: Path, rules: ReadingRules) -> None:
        self._dtype = token_dtype(rules.token_type)
        names = [TOKENS, SKETCHES, CANDIDATES, DOCUMENTS]
        names += [SIGNATURES] if rules.keeps_signatures else []
        names += [TEXTS] if rules.keeps_texts else []
        self._files = {name: HashingFile(folder / name) for name in names}
        self._candidates_bytes = 0

    def write_candidate(self, text: str) -> int:
        """Append the text of a candidate and return its offset."""
        # JSON escapes line breaks, so that each text is one line.
        line = json.dumps(text).encode() + b"\n"
        offset = self._candidates_bytes
        self._files[CANDIDATES].write(line)
        self._candidates_bytes += len(line)
        return offset

    def write(
        self, batch: TextBatch, analysis: AnalysedBatch, rows: Sequence[DocumentRow], kept: list[int]
    ) -> None:
        """Append the documents of a batch.

        Args:
            batch: that was read.
            analysis: of it.
            rows: of `DOCUMENT`, of all its documents that are no duplicates.
            kept: numbers in the batch of those that are free of evaluation items.
        """
        self._files[DOCUMENTS].write(np.array(list(rows), dtype=DOCUMENT).tobytes())
        tokens = analysis.tokens.astype(self._dtype)
        _write_documents(self._files[TOKENS], tokens, analysis.token_counts, kept)
        _write_documents(self._files[SKETCHES], analysis.shingles, analysis.shingle_counts, kept)
        if SIGNATURES in self._files and analysis.signatures is not None:
            self._files[SIGNATURES].write(analysis.signatures[kept].tobytes())
        if TEXTS in self._files:
            for number in kept:
                self._files[TEXTS].write(json.dumps(batch.texts[number]).encode() + b"\n")

    def close(self) -> tuple[ShardFile, ...]:
        """Make all files durable and return their sizes and digests."""
        return tuple(file.close() for file in self._files.values())

    def __enter__(self) -> _SliceFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.abandon()


def _write_documents(
    file: HashingFile, values: Integers, counts: npt.NDArray[np.int64], numbers: list[int]
) -> None:
    """Write the values of the documents of a batch that have these numbers, in order."""
    if len(numbers) == len(counts):
        file.write(values.tobytes())
        return
    ends = np.cumsum(counts)
    for number in numbers:
        file.write(values[ends[number] - counts[number] : ends[number]].tobytes())
