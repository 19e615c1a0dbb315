"""Makes the header of a safetensors file, for writers that hold one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch

TYPE_NAMES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of number formats in safetensors files."""
_ALIGNMENT_BYTES: Final = 8
"""A header is filled with spaces to a multiple of this."""


def safetensors_header(tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]]) -> bytes:
    """Return the beginning of a file: the length of the header, and the header in JSON.

    Args:
        tensors: (name, number format, shape), in the order in which their values follow without gaps.
    """
    # The entry by which transformers knows that the file is torch's.
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text
