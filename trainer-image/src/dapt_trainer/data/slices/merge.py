"""Puts the slices of a side together, in reading order: what stands in an earlier one is dropped here.

Everything that depends on more than one document is decided here, in one process and in the order of the sources, so
that the corpus is the same however many processes have read it. It takes the hashes and lengths alone, about 60 bytes
a document; tokens, sketches and texts stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dapt_contract.measure import Side
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.packing.shards import Integer, token_dtype
from dapt_trainer.data.reading.languages import FIRST_DOCUMENTS, language_of
from dapt_trainer.data.reading.text_batches import Counts, report_findings
from dapt_trainer.data.slices.cut import CorpusSlice, CorpusSource
from dapt_trainer.data.slices.read_slice import ReadingRules, SmallestKeys, texts_by_key
from dapt_trainer.data.slices.records import (
    CANDIDATES,
    SIGNATURES,
    SKETCHES,
    TEXTS,
    TOKENS,
    SliceRecord,
    SliceSpool,
)
from dapt_trainer.data.slices.spooled_source import (
    MIN_HELD_OUT_TOKENS,
    TINY_TOKENS,
    HeldOutCandidate,
    SpooledSource,
    StoredRuns,
    StoredSignatures,
    StoredTexts,
)
from dapt_trainer.data.text import Hashes

_Mask = npt.NDArray[np.bool_]


class MergedSide:
    """Decides about the documents of one side; sources are added in their order."""

    def __init__(self, side: Side, rules: ReadingRules) -> None:
        self.side: Side = side
        self._rules = rules
        self._known_keys: Hashes = np.empty(0, dtype=np.uint64)
        self._smallest = SmallestKeys(rules.key_threshold)
        self._candidate_files: list[Path] = []
        self.candidates: list[HeldOutCandidate] = []

    @property
    def known_keys(self) -> Hashes:
        """Return the sorted hashes of the documents so far, which no later one may have."""
        return self._known_keys

    def add(
        self,
        source: CorpusSource,
        slices: Sequence[CorpusSlice],
        spools: Sequence[SliceSpool],
        problems: Problems,
    ) -> SpooledSource:
        """Return the kept documents of a source.

        Args:
            source: the source.
            slices: of the source that are finished, in reading order.
            spools: what each of them left.
            problems: gets one sentence for each kind of fault of this source.

        Raises:
            InfrastructureError: a file changed since it was written.
        """
        counts = Counts()
        is_kept: list[_Mask] = []
        documents = [spool.documents() for spool in spools]
        is_first = self._first_of_side([rows["key"] for rows in documents])
        num_kept = 0
        for entry, spool, rows, is_new in zip(slices, spools, documents, is_first, strict=True):
            self._count(spool.record, rows, is_new, counts)
            kept = is_new & (rows["task"] < 0)
            is_kept.append(kept)
            self._add_candidates(source.index, spool, rows, kept, num_kept)
            self._add_languages(entry, spool.record, rows, kept, counts)
            num_kept += int(kept.sum())
        report_findings(
            source.field,
            source.config,
            source.files,
            [spool.record.findings for spool in spools],
            self._rules.bad_records_max_fraction,
            problems,
        )
        return self._spooled(source, spools, documents, is_kept, counts)

    def candidate_text(self, candidate: HeldOutCandidate) -> str:
        """Return the text of a candidate."""
        with self._candidate_files[candidate.text_file].open("rb") as file:
            file.seek(candidate.text_offset)
            text: str = json.loads(file.readline())
            return text

    def _first_of_side(self, keys: Sequence[Hashes]) -> list[_Mask]:
        """Return for each slice which of its documents no earlier one of the side has."""
        if not self._rules.deduplicate:
            return [np.ones(len(own), dtype=np.bool_) for own in keys]
        joined = np.concatenate([np.empty(0, dtype=np.uint64), *keys])
        distinct, firsts = np.unique(joined, return_index=True)
        is_first = np.zeros(len(joined), dtype=np.bool_)
        is_first[firsts] = True
        if len(self._known_keys):
            is_first &= ~np.isin(joined, self._known_keys)
        self._known_keys = np.union1d(self._known_keys, distinct)
        return list(np.split(is_first, np.cumsum([len(own) for own in keys])[:-1])) if keys else []

    def _count(self, record: SliceRecord, rows: npt.NDArray[np.void], is_new: _Mask, counts: Counts) -> None:
        counts.records += record.records
        counts.bad_records += record.bad_records
        counts.empty += record.empty
        counts.duplicates += record.duplicates + int((~is_new).sum())
        tasks = rows["task"][is_new & (rows["task"] >= 0)]
        counts.contaminated += len(tasks)
        for task, number in enumerate(np.bincount(tasks, minlength=0).tolist()):
            if number:
                counts.contaminated_by[self._rules.tasks[task]] += number
        kept = is_new & (rows["task"] < 0)
        counts.tiny += int(
            (rows["tokens"][kept].astype(np.int64) - self._rules.special_tokens < TINY_TOKENS).sum()
        )

    def _add_candidates(
        self, source: int, spool: SliceSpool, rows: npt.NDArray[np.void], kept: _Mask, num_before: int
    ) -> None:
        """Add the documents of a slice that may be held out.

        A slice has kept the texts of all of them: what is among the smallest of the whole side so far is also among
        the smallest of its own slice so far.
        """
        offsets = dict(spool.record.candidates)
        tokens = rows["tokens"].astype(np.int64) - self._rules.special_tokens
        may_be = kept & (tokens >= MIN_HELD_OUT_TOKENS) & self._smallest.may_take(rows["key"], rows["half"])
        numbers = np.cumsum(kept) - 1 + num_before
        for row in np.flatnonzero(may_be).tolist():
            key, half = int(rows["key"][row]), int(rows["half"][row])
            if self._smallest.takes(key, half) and row in offsets:
                self.candidates.append(
                    HeldOutCandidate(
                        key,
                        half,
                        source,
                        int(numbers[row]),
                        int(tokens[row]),
                        offsets[row],
                        len(self._candidate_files),
                    )
                )
        self._candidate_files.append(spool.path(CANDIDATES))

    def _add_languages(
        self,
        corpus_slice: CorpusSlice,
        record: SliceRecord,
        rows: npt.NDArray[np.void],
        kept: _Mask,
        counts: Counts,
    ) -> None:
        """Sample the languages of a slice's kept documents.

        A slice knows those of its own first documents and of every so many later ones. Where the first ones stand in
        earlier slices, others are among the first of the source, and their texts are read again.
        """
        sample = counts.languages
        known = {row: (characters, language) for row, characters, language in record.languages}
        kept_rows = np.flatnonzero(kept)
        first = kept_rows[: max(0, FIRST_DOCUMENTS - sample.sampled)].tolist()
        if unknown := {int(rows["key"][row]) for row in first if row not in known}:
            texts = texts_by_key(corpus_slice, self._rules, unknown)
            for row in first:
                if (text := texts.get(int(rows["key"][row]))) is not None:
                    known.setdefault(row, (len(text), language_of(text)))
        for row in sorted(known):
            if kept[row] and sample.takes(int(rows["key"][row])):
                characters, language = known[row]
                sample.add(characters, int(rows["tokens"][row]) - self._rules.special_tokens, language)

    def _spooled(
        self,
        source: CorpusSource,
        spools: Sequence[SliceSpool],
        documents: Sequence[npt.NDArray[np.void]],
        is_kept: Sequence[_Mask],
        counts: Counts,
    ) -> SpooledSource:
        # What contains an evaluation item has no tokens in the files.
        is_stored = [rows["task"] < 0 for rows in documents]
        stored_kept = tuple(kept[stored] for kept, stored in zip(is_kept, is_stored, strict=True))
        keys = [rows["key"][kept] for rows, kept in zip(documents, is_kept, strict=True)]

        def runs(file: str, name: str, dtype: np.dtype[Integer]) -> StoredRuns:
            firsts, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
            for rows, stored, kept in zip(documents, is_stored, stored_kept, strict=True):
                values = rows[name][stored].astype(np.int64)
                firsts.append((np.cumsum(values) - values)[kept])
                sizes.append(values[kept])
            return StoredRuns(
                tuple(spool.path(file) for spool in spools),
                dtype,
                tuple(int(kept.sum()) for kept in stored_kept),
                np.concatenate(firsts),
                np.concatenate(sizes),
            )

        tokens = runs(TOKENS, "tokens", token_dtype(self._rules.token_type))
        return SpooledSource(
            side=source.side,
            index=source.index,
            config=source.config,
            counts=counts,
            token_counts=tokens.counts,
            keys=np.concatenate([np.empty(0, np.uint64), *keys]),
            tokens=tokens,
            sketches=runs(SKETCHES, "sketch", np.dtype("<u8")),
            signatures=StoredSignatures(tuple(spool.path(SIGNATURES) for spool in spools), stored_kept)
            if self._rules.keeps_signatures
            else None,
            texts=StoredTexts(tuple(spool.path(TEXTS) for spool in spools), stored_kept)
            if self._rules.keeps_texts
            else None,
        )
