"""Reads the shape of a model from its config.json and the headers of its safetensors files, without reading weights.

The trainer describes an imported model with it, and the command line a model on the user's machine.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GENERIC_TOKENIZER = "PreTrainedTokenizerFast"
"""Class in tokenizer_config.json that reads tokenizer.json as it is, in every version of transformers."""
_MAX_HEADER_BYTES = 100 * 1024 * 1024
"""A larger number means that the file is not one of safetensors, or is damaged."""
_DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
}
_CONFIG_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocabulary_size": ("vocab_size",),
    "attention_heads": ("num_attention_heads", "n_head"),
    "key_value_heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "max_positions": ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"),
}


@dataclass(frozen=True)
class SafetensorsHeader:
    """Holds what the header of one file says."""

    shapes: dict[str, tuple[int, ...]]
    """Shape of each tensor by its name."""
    dtypes: dict[str, str]
    """Type of each tensor by its name, in the words of safetensors: F32, BF16, I8."""
    offsets: dict[str, tuple[int, int]]
    """First byte of each tensor in the file, and the byte behind its last."""
    weights_bytes: int
    """Bytes of all tensors, by their shapes and types."""
    file_bytes: int
    """Size that the file has when it is complete."""

    @property
    def parameters(self) -> int:
        """Return the number of elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def config_number(config: Mapping[str, object], *keys: str) -> int:
    """Return the first of these keys of a config.json that holds a number; 0 when none does."""
    values = (config.get(key) for key in keys)
    return next((int(value) for value in values if isinstance(value, int | float)), 0)


def shape_numbers(config: Mapping[str, object]) -> dict[str, int]:
    """Return the numbers of `ModelFacts` that a config.json gives, under the names of its fields; 0 for a missing one.

    Architectures have their own names for them; a missing width of the MLP is four times the hidden size, as in GPT-2.
    """
    numbers = {name: config_number(config, *keys) for name, keys in _CONFIG_KEYS.items()}
    return numbers | {"intermediate_size": numbers["intermediate_size"] or 4 * numbers["hidden_size"]}


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file: 8 bytes of length, little endian, then JSON.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    offsets: dict[str, tuple[int, int]] = {}
    weights_bytes = 0
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        file_bytes = 8 + length
        for name, tensor in header.items():
            if name != "__metadata__":
                shapes[name] = tuple(tensor["shape"])
                dtypes[name] = tensor["dtype"]
                begin, end = tensor["data_offsets"]
                offsets[name] = (8 + length + begin, 8 + length + end)
                weights_bytes += math.prod(shapes[name]) * _DTYPE_BYTES.get(tensor["dtype"], 1)
                file_bytes = max(file_bytes, 8 + length + end)
    except (KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(str(error)) from error
    return SafetensorsHeader(shapes, dtypes, offsets, weights_bytes, file_bytes)
