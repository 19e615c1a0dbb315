"""Writes safetensors files one tensor after the other, and hashes them while it writes.

The library's own writer needs all tensors of a file in memory. The format is a length, a JSON header with the place of
each tensor, and the tensors' bytes, so the header can be written before the first tensor is computed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from dapt_trainer.safetensors_header import TYPE_NAMES, safetensors_header

TYPES: Final = {name: dtype for dtype, name in TYPE_NAMES.items()}
_BLOCK_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class PlannedTensor:
    """Describes a tensor of a file that is going to be written."""

    name: str
    """In the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Return its size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def into_shards(tensors: Sequence[PlannedTensor], shard_bytes: int) -> list[list[PlannedTensor]]:
    """Divide tensors, in their order, into files of at most `shard_bytes`; a larger tensor gets a file of its own."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    return shards


def write_shard(
    path: Path,
    tensors: Sequence[PlannedTensor],
    value_of: Callable[[PlannedTensor], torch.Tensor],
    heartbeat: Callable[[], None],
) -> str:
    """Write one file and flush it to disk; at most one value is held at a time.

    Args:
        path: of the file.
        tensors: that it holds.
        value_of: returns a tensor's value, of the planned shape and type, on the CPU.
        heartbeat: called once a block.

    Returns:
        The hexadecimal SHA-256 of the file.

    Raises:
        OSError: the disk is full or gone.
    """
    # Widest formats first: each tensor then begins at a multiple of its own width.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(content: bytes | memoryview) -> None:
            file.write(content)
            digest.update(content)
            heartbeat()

        write(safetensors_header([(tensor.name, tensor.dtype, tensor.shape) for tensor in ordered]))
        for tensor in ordered:
            value = value_of(tensor)
            if value.shape != tensor.shape or value.dtype != tensor.dtype:
                raise ValueError(
                    f"{tensor.name} is {value.dtype} {tuple(value.shape)}, and {tensor} was planned"
                )
            content: memoryview = value.contiguous().reshape(-1).view(torch.uint8).numpy().data
            for begin in range(0, len(content), _BLOCK_BYTES):
                write(content[begin : begin + _BLOCK_BYTES])
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
