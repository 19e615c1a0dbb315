"""Reads the shape of a model from its config.json and the headers of its safetensors files, without reading weights.

The trainer describes an imported model with it, and the command line a model on the user's machine.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeGuard

GENERIC_TOKENIZER = "PreTrainedTokenizerFast"
"""Class in tokenizer_config.json that reads tokenizer.json as it is, in every version of transformers."""
MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Longest header that is read: enough for 100,000 tensors in one file. Parsing it takes some 30 times its bytes."""
MAX_SIZE = 1 << 40
"""Largest number that is taken for a size in a configuration or a header."""
_MAX_DIMENSIONS = 8
_MAX_SHOWN_NAME = 120
_DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "C64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
}
_BYTE_DTYPES = ("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_PACKED_DTYPES = ("F4", "F6_E2M3", "F6_E3M2")
"""Types with less than a byte an element: their bytes are not compared with their shapes."""
_CONFIG_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocabulary_size": ("vocab_size",),
    "attention_heads": ("num_attention_heads", "n_head"),
    "key_value_heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "max_positions": ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"),
}
EXPERTS = ".experts."
"""Part of the names of tensors of which a token passes some: `shared_expert` and the like have other names."""
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_NUM_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
"""How many of them one token passes."""


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
    """Return the first of these keys of a config.json that holds a size; 0 when none does.

    Infinite numbers, negative ones and those past `MAX_SIZE` are no sizes.
    """
    values = (config.get(key) for key in keys)
    return next((int(value) for value in values if _is_size(value)), 0)


def _is_size(value: object) -> TypeGuard[int | float]:
    # A bool is an int, and NaN fails both comparisons.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE


def shape_numbers(config: Mapping[str, object]) -> dict[str, int]:
    """Return the numbers of `ModelFacts` that a config.json gives, under the names of its fields; 0 for a missing one.

    Architectures have their own names for them; a missing width of the MLP is four times the hidden size, as in GPT-2.
    """
    numbers = {name: config_number(config, *keys) for name, keys in _CONFIG_KEYS.items()}
    return numbers | {"intermediate_size": numbers["intermediate_size"] or 4 * numbers["hidden_size"]}


def active_parameters(config: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the parameters that one token passes in a mixture of experts: of the experts, as many as are chosen.

    Args:
        config: of the model.
        shapes: of all its tensors, by their names; experts that every token passes are not named `experts`.

    Returns:
        None where all are passed, or the configuration does not say how many.
    """
    share = chosen_share(config)
    of_experts = sum(math.prod(shape) for name, shape in shapes.items() if EXPERTS in name)
    if not of_experts or share == 1:
        return None
    return sum(math.prod(shape) for shape in shapes.values()) - of_experts + int(of_experts * share)


def chosen_share(config: Mapping[str, object]) -> Fraction:
    """Return the share of the experts that one token passes; 1 where there are none, or their number is unknown."""
    experts, chosen = config_number(config, *_NUM_EXPERTS), config_number(config, *_NUM_CHOSEN)
    return Fraction(chosen, experts) if 0 < chosen < experts else Fraction(1)


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file: 8 bytes of length, little endian, then JSON.

    The file comes from anybody: nothing is read or computed before its size is known to be small.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is damaged.
    """
    with path.open("rb") as file:
        beginning = file.read(8)
        if len(beginning) < 8:
            raise ValueError(f"has {len(beginning)} bytes, a header begins with 8")
        (length,) = struct.unpack("<Q", beginning)
        if length > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        content = file.read(length)
    if len(content) < length:
        raise ValueError(f"has {8 + len(content)} bytes, its header says {8 + length} or more")
    header = _parsed_header(content)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    offsets: dict[str, tuple[int, int]] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            dtypes[name], shapes[name], (begin, end) = _tensor(name, tensor)
            offsets[name] = (8 + length + begin, 8 + length + end)
    return SafetensorsHeader(
        shapes,
        dtypes,
        offsets,
        weights_bytes=sum(math.prod(shapes[name]) * _DTYPE_BYTES.get(dtypes[name], 1) for name in shapes),
        file_bytes=max((end for _, end in offsets.values()), default=8 + length),
    )


def read_complete_header(path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file, and compare it with the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is damaged, the file has another size, or tensors have other bytes than their shapes
            say, or share bytes with each other.
    """
    header = read_safetensors_header(path)
    size = path.stat().st_size
    if size != header.file_bytes:
        raise ValueError(f"has {size} bytes, its header says {header.file_bytes}")
    last, last_end = "", 0
    for name, (begin, end) in sorted(header.offsets.items(), key=lambda entry: entry[1]):
        dtype = header.dtypes[name]
        expected = math.prod(header.shapes[name]) * _DTYPE_BYTES.get(dtype, 1)
        if dtype not in _PACKED_DTYPES and end - begin != expected:
            raise ValueError(f"{_shown(name)} has {end - begin} bytes, its shape says {expected}")
        if begin < last_end and end > begin:
            raise ValueError(f"{_shown(name)} begins within {_shown(last)}")
        if end > begin:
            last, last_end = name, end
    return header


def _parsed_header(content: bytes) -> dict[str, object]:
    """Return the object that a header holds."""

    def without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ValueError("its header has a name twice")
        return entries

    try:
        header = json.loads(content, object_pairs_hook=without_repeats)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("its header is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON ({error})") from None
    except ValueError as error:
        # Python's own message about thousands of digits goes on about its settings.
        is_named = str(error).startswith("its header")
        raise ValueError(
            str(error) if is_named else "its header has a number of thousands of digits"
        ) from None
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header


def _tensor(name: str, tensor: object) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Return type, shape, and first and last byte of a header's entry."""
    entry = tensor if isinstance(tensor, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in (*_DTYPE_BYTES, *_BYTE_DTYPES, *_PACKED_DTYPES):
        raise ValueError(f"{_shown(name)} has no type that safetensors knows")
    sizes = _sizes(shape)
    if sizes is None or len(sizes) > _MAX_DIMENSIONS or math.prod(sizes) > MAX_SIZE:
        raise ValueError(f"{_shown(name)} has no possible shape")
    ends = _sizes(offsets)
    if ends is None or len(ends) != 2 or ends[0] > ends[1]:
        raise ValueError(f"{_shown(name)} has no possible place in the file")
    return dtype, sizes, (ends[0], ends[1])


def _sizes(values: object) -> tuple[int, ...] | None:
    """Return a list of whole sizes; None for anything else."""
    if not isinstance(values, list) or not all(
        isinstance(value, int) and _is_size(value) for value in values
    ):
        return None
    return tuple(values)


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= _MAX_SHOWN_NAME else repr(name[:_MAX_SHOWN_NAME])
