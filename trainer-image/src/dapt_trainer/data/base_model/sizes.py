"""Compares the sizes that a config.json names with the tensors that are there, before anything of such a size is made.

transformers builds a model by its configuration alone: a million layers cost memory and hours although no file holds
them. Only headers are read here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from pydantic import JsonValue

from dapt_contract.base import JsonObject
from dapt_contract.inputs.model_files import MAX_SIZE, SafetensorsHeader

_LAYERS = frozenset({"num_hidden_layers", "n_layer", "num_layers", "n_layers"})
_WIDTHS = frozenset(
    {"vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "head_dim"}
)
"""Settings that are a dimension of at least one tensor, or smaller."""
_COUNT = re.compile(r"^(num|n)_|_(layers|heads|experts|labels|blocks)$")
_SIZE = re.compile(r"_(size|dim|rank|width)$")
_LENGTH = re.compile(r"position|ctx|seq|token|param|step|epoch|sample")
"""Settings of lengths and of a training, of which nothing is made."""
_LARGEST_COUNT, _LARGEST_SIZE = 1 << 16, 1 << 24
"""Of a setting that no tensor shows: windows, chunks, labels."""
_MAX_VALUES = 50_000
"""Values of a config.json; published ones have up to a few thousand."""
_MAX_SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class _Stored:
    """Holds what the headers say."""

    tensors: int
    largest_dimension: int


def size_problems(config: JsonObject, headers: Collection[SafetensorsHeader]) -> list[str]:
    """Return a sentence for each of the first settings of config.json that no tensor bears out, or for too many.

    Args:
        config: config.json.
        headers: of all files of weights.
    """
    # transformers copies and compares each value several times, at every load: a million of them take minutes.
    if next(islice(_values(config), _MAX_VALUES, None), None) is not None:
        return [
            f"config.json has more than {_MAX_VALUES:,} values; remove those that the architecture does not read"
        ]
    stored = _Stored(
        sum(len(header.shapes) for header in headers),
        max((size for header in headers for shape in header.shapes.values() for size in shape), default=0),
    )
    problems = (_problem(key, value, stored) for key, value in _numbers(config))
    return [problem for problem in problems if problem][:_MAX_SHOWN_PROBLEMS]


def _problem(key: str, value: int | float, stored: _Stored) -> str:
    """Return the sentence about one setting; empty where it is possible."""
    limit, evidence = MAX_SIZE, "the largest number that has a meaning there"
    if key in _LAYERS:
        limit, evidence = stored.tensors, "the number of tensors in its files"
    elif key in _WIDTHS:
        limit, evidence = stored.largest_dimension, "the largest dimension of a tensor in its files"
    elif (_COUNT.search(key) or _SIZE.search(key)) and not _LENGTH.search(key):
        usual = _LARGEST_COUNT if _COUNT.search(key) else _LARGEST_SIZE
        limit, evidence = max(usual, stored.largest_dimension, stored.tensors), "more than its files bear out"
    else:
        # A setting of another kind may be any finite number: an infinite limit is one too.
        return (
            ""
            if not isinstance(value, int) or abs(value) <= MAX_SIZE
            else _sentence(key, value, limit, evidence)
        )
    if -1 <= value <= limit and math.isfinite(value):
        return ""
    return _sentence(key, value, limit, evidence)


def _sentence(key: str, value: int | float, limit: int, evidence: str) -> str:
    return (
        f"config.json has {key}: {value:,}, and 0 to {limit:,} is possible ({evidence}); correct config.json, or use "
        "the checkpoint that belongs to it"
    )


def _numbers(config: Mapping[str, JsonValue]) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers of all objects at any depth by their keys."""
    for key, value in _values(config):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _values(config: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    """Yield all values at any depth by their keys, without recursion."""
    waiting: list[tuple[str, JsonValue]] = [("", dict(config))]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(reversed(value.items()))
        elif isinstance(value, list):
            waiting.extend((key, part) for part in reversed(value))
        yield key, value
