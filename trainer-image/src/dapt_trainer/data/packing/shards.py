"""Writes packed sequences to disk, one folder a source, and reads them through memory maps.

Files of a shard, little endian, for S sequences of L positions:

    tokens.bin     uint16 or uint32 [S, L]   token ids; positions past a row's `used` hold end-of-text
    used.bin       int32 [S]                 positions of each row that hold a token
    row_index.bin  int64 [S + 1]             row r has the segments starts[row_index[r] : row_index[r + 1]]
    starts.bin     int32 [segments]          first position of each segment in its row; the first is always 0

A segment is a document with its end-of-text, or one part of a document that was cut.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dapt_contract.layout import DATA
from dapt_contract.measure import Side
from dapt_trainer.data.packing.data_manifest import (
    DataManifest,
    ShardFile,
    TokenType,
    problem_of_shards,
    read_manifest,
)
from dapt_trainer.errors import InputError

TOKENS, USED, ROW_INDEX, STARTS = "tokens.bin", "used.bin", "row_index.bin", "starts.bin"

Integer = np.integer[Any]
"""An integer type of any width."""
Integers = npt.NDArray[Integer]
Scalar = TypeVar("Scalar", bound=np.generic)


def token_dtype(token_type: TokenType) -> np.dtype[Integer]:
    """Return the type of tokens on disk, which is little endian on every machine."""
    return np.dtype(token_type).newbyteorder("<")


def mapped_array(path: Path, dtype: np.dtype[Scalar]) -> npt.NDArray[Scalar]:
    """Return the values of a file, memory-mapped for reading."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


@dataclass(frozen=True)
class PackedSequence:
    """Holds one row of a shard; arrays have the shape [L] unless another is given."""

    input_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    """Positions, which restart at 0 with each segment and with the unused tail."""
    segment_ids: npt.NDArray[np.int64]
    """0, 1, ... by segment; -1 where the row holds no token."""
    starts: npt.NDArray[np.int64]
    """[segments] first position of each segment."""
    used: int
    """Number of positions that hold a token."""


@dataclass(frozen=True)
class Shard:
    """Holds the memory-mapped sequences of one source."""

    name: str
    side: Side
    weight: float
    tokens: Integers
    """[S, L]"""
    used: npt.NDArray[np.int32]
    """[S]"""
    row_index: npt.NDArray[np.int64]
    """[S + 1]"""
    starts: npt.NDArray[np.int32]
    """[segments]"""

    def __len__(self) -> int:
        """Return the number of sequences."""
        return int(self.tokens.shape[0])

    def sequence(self, row: int) -> PackedSequence:
        """Return one row with its segments."""
        length = self.tokens.shape[1]
        used = int(self.used[row])
        starts = self.starts[self.row_index[row] : self.row_index[row + 1]].astype(np.int64)
        # The unused tail counts as one more segment, so that its positions restart too.
        edges = starts if used == length else np.append(starts, used)
        positions = np.arange(length, dtype=np.int64)
        segments = np.searchsorted(edges, positions, side="right") - 1
        position_ids = positions - edges[segments]
        segments[used:] = -1
        return PackedSequence(self.tokens[row].astype(np.int64), position_ids, segments, starts, used)


def open_shards(work: Path, manifest: DataManifest | None = None) -> list[Shard]:
    """Open all shards of the work volume, in the manifest's order: domain sources first.

    Raises:
        InputError: there is no manifest, or a file does not have the size that the manifest lists, or another number
            of tokens than its sequences have.
    """
    manifest = manifest or read_manifest(work)
    if problem := problem_of_shards(work, manifest):
        raise InputError(f"{problem}; run prepare again")
    int32 = np.dtype(np.int32).newbyteorder("<")
    int64 = np.dtype(np.int64).newbyteorder("<")
    shards = []
    for entry in manifest.shards:
        folder = work / DATA / entry.name
        tokens = mapped_array(folder / TOKENS, token_dtype(manifest.token_type))
        if tokens.size != entry.sequences * manifest.sequence_length_tokens:
            raise InputError(
                f"{folder / TOKENS}: has {tokens.size:,} tokens, and the manifest says {entry.sequences:,} sequences "
                f"of {manifest.sequence_length_tokens:,}; run prepare again"
            )
        shards.append(
            Shard(
                entry.name,
                entry.side,
                entry.weight,
                tokens.reshape(entry.sequences, manifest.sequence_length_tokens),
                mapped_array(folder / USED, int32),
                mapped_array(folder / ROW_INDEX, int64),
                mapped_array(folder / STARTS, int32),
            )
        )
    return shards


class ShardWriter:
    """Writes one source's rows in order, and the digests of the files."""

    def __init__(
        self, folder: Path, *, sequence_length_tokens: int, token_type: TokenType, end_of_text_id: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._length = sequence_length_tokens
        self._dtype = token_dtype(token_type)
        self._end_of_text_id = end_of_text_id
        self._files = {name: HashingFile(folder / name) for name in (TOKENS, USED, ROW_INDEX, STARTS)}
        self._files[ROW_INDEX].write(np.zeros(1, dtype="<i8").tobytes())
        self._segments = 0
        self.sequences = 0
        self.filled_positions = 0

    def write_row(self, pieces: list[Integers]) -> None:
        """Append one sequence that is made of these segments, in this order.

        Raises:
            ValueError: they do not fit, or one is empty.
        """
        lengths = [len(piece) for piece in pieces]
        used = sum(lengths)
        if used > self._length or not pieces or min(lengths) == 0:
            raise ValueError(f"segments of {lengths} tokens are no row of {self._length} positions")
        row = np.full(self._length, self._end_of_text_id, dtype=self._dtype)
        # "unsafe" only for numpy: the type of the tokens on disk holds every id of the vocabulary.
        np.concatenate(pieces, out=row[:used], casting="unsafe")
        starts = np.cumsum([0, *lengths[:-1]]).astype("<i4")
        self._segments += len(pieces)
        self._files[TOKENS].write(row.tobytes())
        self._files[USED].write(np.array([used], dtype="<i4").tobytes())
        self._files[ROW_INDEX].write(np.array([self._segments], dtype="<i8").tobytes())
        self._files[STARTS].write(starts.tobytes())
        self.sequences += 1
        self.filled_positions += used

    def close(self) -> tuple[ShardFile, ...]:
        """Make the files durable and return their sizes and digests."""
        return tuple(file.close() for file in self._files.values())

    def __enter__(self) -> ShardWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files that are still open; without a manifest they are not a shard."""
        for file in self._files.values():
            file.abandon()


class HashingFile:
    """Writes a file and hashes its content on the way, so that it is never read again for its digest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=1024 * 1024)
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, content: bytes) -> None:
        """Append some bytes."""
        self._file.write(content)
        self._hash.update(content)
        self._size += len(content)

    def close(self) -> ShardFile:
        """Make the file durable and return its size and digest."""
        self._file.flush()
        # On disk before the manifest lists the file with its digest.
        os.fsync(self._file.fileno())
        self._file.close()
        return ShardFile(name=self._path.name, size_bytes=self._size, sha256=self._hash.hexdigest())

    def abandon(self) -> None:
        """Close the file if it is open, without making it durable."""
        self._file.close()
