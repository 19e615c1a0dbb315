"""Reads the slices of a corpus in all processes of this pod, and waits for those that other pods read."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dapt_contract.envelope import digest_of
from dapt_contract.version import PRODUCT_VERSION
from dapt_trainer.data.analysis import AnalysisPool, AnalysisSettings
from dapt_trainer.data.reading.sources import SourceFile, content_key
from dapt_trainer.data.slices.board import SliceBoard
from dapt_trainer.data.slices.cut import CorpusSlice
from dapt_trainer.data.slices.read_slice import ReadingRules, SliceReader
from dapt_trainer.data.slices.records import SliceRecord
from dapt_trainer.data.text import Hashes

_IDENTITY_VERSION = 1
_POLL_SECONDS = 1.0
MIN_SHARED_BYTES = 32 * 1024 * 1024
"""Text that is read in this process, with the help of the pool: starting others takes longer."""


@dataclass(frozen=True)
class SharedReading:
    """Holds what every process that reads slices knows."""

    board: SliceBoard
    rules: ReadingRules
    settings: AnalysisSettings
    uid: str
    """Of the adaptation: what another one left is never taken for this one's."""
    run_key: str
    settings_digest: str = field(default="", kw_only=True)

    @classmethod
    def of(
        cls, board: SliceBoard, rules: ReadingRules, settings: AnalysisSettings, uid: str, run_key: str
    ) -> SharedReading:
        """Return the same with the digest of the settings, which takes some time."""
        return cls(board, rules, settings, uid, run_key, settings_digest=_digest_of_settings(settings))

    def identity(self, corpus_slice: CorpusSlice, known_keys: Hashes | None = None) -> str:
        """Return the digest of everything that decides what a slice leaves.

        Args:
            corpus_slice: the slice.
            known_keys: hashes of documents that are duplicates in it.
        """
        source = corpus_slice.source
        files = {
            file.path: content_key(source.files.filesystem, file.path) for file in _files_of(corpus_slice)
        }
        parts = [
            [part.file.path, part.file.format, part.file.compression, part.first_byte, part.end_byte]
            for part in corpus_slice.parts
        ]
        return digest_of(
            {
                "version": [_IDENTITY_VERSION, PRODUCT_VERSION],
                "uid": self.uid,
                "rules": asdict(self.rules),
                "settings": self.settings_digest,
                "source": [source.files.uri, source.config.text_field, source.config.max_tokens],
                "number": corpus_slice.number,
                "parts": parts,
                "files": files,
                "known": hashlib.sha256(b"" if known_keys is None else known_keys.tobytes()).hexdigest(),
            }
        )

    def finish(
        self,
        reader: SliceReader,
        corpus_slice: CorpusSlice,
        progress: Callable[[int], None],
        known_keys: Hashes | None = None,
    ) -> SliceRecord:
        """Finish a slice that this process has claimed.

        Raises:
            InputError: as `SliceReader.read`.
        """
        identity = self.identity(corpus_slice, known_keys)

        def read(folder: Path) -> SliceRecord:
            return reader.read(
                corpus_slice,
                folder,
                identity=identity,
                run_key=self.run_key,
                key=self.board.key,
                known_keys=known_keys,
                progress=progress,
            )

        may_fail = self.rules.bad_records_max_fraction == 0
        return self.board.finish(corpus_slice, identity, read, may_fail=may_fail)


@dataclass
class ReadingProgress:
    """Adds up what all processes of all pods have read."""

    total_bytes: int
    show: Callable[[str, float, int], None]
    """Shows the label of a source, the share of all bytes that are read, and the tokens so far; sends a heartbeat."""
    done_bytes: int = 0
    tokens: int = 0
    counted: set[str] = field(default_factory=set)

    def note(self, corpus_slice: CorpusSlice, tokens: int) -> None:
        """Count a finished slice, once."""
        if corpus_slice.name not in self.counted:
            self.counted.add(corpus_slice.name)
            self.done_bytes += corpus_slice.size_bytes
            self.tokens += tokens
        self.during(corpus_slice, 0)

    def during(self, corpus_slice: CorpusSlice, tokens: int) -> None:
        """Show a slice that is being read, of which so many tokens are kept."""
        fraction = min(1.0, self.done_bytes / max(1, self.total_bytes))
        self.show(corpus_slice.source.label, fraction, self.tokens + tokens)


def read_slices(
    shared: SharedReading,
    slices: Sequence[CorpusSlice],
    progress: ReadingProgress,
    pool: AnalysisPool,
    beat: Callable[[], None],
    *,
    processes: int | None = None,
) -> None:
    """Read those of the slices that no other pod reads.

    Args:
        shared: by all processes.
        slices: in the order in which they are taken.
        progress: shown meanwhile.
        pool: analyses in this process' stead where there is too little to share.
        beat: called now and then.
        processes: that read slices; None: by the cores.

    Raises:
        InputError: a text takes too long, or the tokenizer fails at it.
        InfrastructureError: one of the processes was killed.
    """
    from dapt_trainer.data.slices.workers import read_in_processes

    if processes is None:
        processes = _num_processes(slices)
    if processes > 1:
        read_in_processes(shared, slices, progress, beat, processes)
        return
    reader = SliceReader(shared.rules, pool)
    for corpus_slice in slices:
        beat()
        if not shared.board.claim(corpus_slice):
            continue

        def show(tokens: int, corpus_slice: CorpusSlice = corpus_slice) -> None:
            progress.during(corpus_slice, tokens)

        progress.note(corpus_slice, shared.finish(reader, corpus_slice, show).tokens)


def wait_for_slices(
    shared: SharedReading,
    slices: Sequence[CorpusSlice],
    progress: ReadingProgress,
    beat: Callable[[], None],
) -> None:
    """Wait until all slices are finished, or their source cannot be used; other pods read them."""
    waiting = {corpus_slice.name: corpus_slice for corpus_slice in slices}
    while True:
        for name in waiting.keys() & shared.board.finished():
            corpus_slice = waiting.pop(name)
            if name not in progress.counted:
                progress.note(corpus_slice, shared.board.spool(corpus_slice).record.tokens)
        if not any(not shared.board.has_failed(corpus_slice.source) for corpus_slice in waiting.values()):
            return
        beat()
        time.sleep(_POLL_SECONDS)


def _num_processes(slices: Sequence[CorpusSlice]) -> int:
    if sum(corpus_slice.size_bytes for corpus_slice in slices) < MIN_SHARED_BYTES:
        return 1
    return min(len(os.sched_getaffinity(0)), len(slices))


def _files_of(corpus_slice: CorpusSlice) -> Sequence[SourceFile]:
    parts = corpus_slice.parts
    return [part.file for part in parts] if parts else corpus_slice.source.files.files


def _digest_of_settings(settings: AnalysisSettings) -> str:
    index = settings.contamination
    digest = hashlib.sha256()
    digest.update(settings.tokenizer_json.encode("utf-8", "surrogatepass"))
    fixed = [settings.begin_of_text_id, settings.end_of_text_id, settings.computes_signatures]
    digest.update(repr([*fixed, index.tasks, index.lengths]).encode())
    for hashes, owners in zip(index.hashes, index.owners, strict=True):
        digest.update(hashes.tobytes() + owners.tobytes())
    return digest.hexdigest()
