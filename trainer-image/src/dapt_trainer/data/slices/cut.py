"""Cuts the sources of the corpus into slices: what one process reads at a time, and what a kill makes it read again.

A slice is one file; a range of a large plain file of JSON lines; or some small files that follow one another. The cut
depends on the names and sizes of the files alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TextSource, source_label
from dapt_trainer.data.reading.documents import BadFileError
from dapt_trainer.data.reading.file_parts import FilePart
from dapt_trainer.data.reading.json_arrays import has_array
from dapt_trainer.data.reading.sources import ResolvedSource, SourceFile

SLICE_BYTES = 64 * 1024 * 1024
"""Plain text of a slice: a few seconds of one core."""


@dataclass(frozen=True)
class CorpusSource:
    """Describes one source of training text: its files and its index in the manifest."""

    side: Side
    index: int
    """Index in the list of its side."""
    config: TextSource
    files: ResolvedSource

    @property
    def name(self) -> str:
        """Return the source's name, for example `domain-0`."""
        return f"{self.side}-{self.index}"

    @property
    def label(self) -> str:
        """Return the source as people know it from the manifest, for example `domain[0]`."""
        return source_label(self.side, self.index)

    @property
    def field(self) -> str:
        """Return the source's field in the manifest, for messages."""
        return f"spec.corpus.{self.label}"

    @property
    def size_bytes(self) -> int:
        """Return the bytes of its files."""
        return sum(file.size_bytes for file in self.files.files)

    @property
    def is_sampled(self) -> bool:
        """Return whether only a part is read, whose end depends on what was read before."""
        return self.config.max_tokens is not None


@dataclass(frozen=True)
class CorpusSlice:
    """Names what one process reads at a time."""

    source: CorpusSource
    number: int
    """Number in its source, in reading order."""
    parts: tuple[FilePart, ...]
    """Files, or one range of a file; empty for a source of which a sample is read."""

    @property
    def name(self) -> str:
        """Return the slice's name, for example `domain-0-00012`."""
        return f"{self.source.name}-{self.number:05d}"

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the slice as they are stored."""
        if not self.parts:
            return self.source.size_bytes
        return sum(
            part.file.size_bytes if part.end_byte is None else part.end_byte - part.first_byte
            for part in self.parts
        )


def slices_of(source: CorpusSource) -> list[CorpusSlice]:
    """Return the slices of a source in reading order; a source of which a sample is read is one slice."""
    if source.is_sampled:
        return [CorpusSlice(source, 0, ())]
    return [
        CorpusSlice(source, number, tuple(parts))
        for number, parts in enumerate(_cut(source.files, SLICE_BYTES))
    ]


def _cut(files: ResolvedSource, slice_bytes: int) -> Iterator[Sequence[FilePart]]:
    small: list[FilePart] = []
    size = 0
    for file in files.files:
        is_large = file.size_bytes > slice_bytes
        if small and (is_large or size + file.size_bytes > slice_bytes):
            yield small
            small, size = [], 0
        if not is_large:
            small.append(FilePart(file))
            size += file.size_bytes
        elif _has_ranges(files, file):
            for first in range(0, file.size_bytes, slice_bytes):
                yield [FilePart(file, first_byte=first, end_byte=min(first + slice_bytes, file.size_bytes))]
        else:
            yield [FilePart(file)]
    if small:
        yield small


def _has_ranges(files: ResolvedSource, file: SourceFile) -> bool:
    """Return whether the records of a file can be found from the middle: those of plain JSON lines can."""
    if file.format != "jsonl" or file.compression:
        return False
    try:
        return not has_array(files.filesystem, file)
    except BadFileError:
        return False  # the reading says why
