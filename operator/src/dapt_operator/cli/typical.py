"""The shape of a model that is not at hand, from its number of parameters: good enough for an estimate."""

from __future__ import annotations

import math
import re

from dapt_contract.stages.prepare import ModelFacts

_SHAPES = (
    # parameters, hidden, layers, heads, key-value heads, feed-forward, vocabulary, tied: of published open models
    (0.135e9, 576, 30, 9, 3, 1536, 49_152, True),
    (0.5e9, 896, 24, 14, 2, 4864, 151_936, True),
    (1.24e9, 2048, 16, 32, 8, 8192, 128_256, True),
    (3.2e9, 3072, 28, 24, 8, 8192, 128_256, True),
    (8.0e9, 4096, 32, 32, 8, 14_336, 128_256, False),
    (14.8e9, 5120, 48, 40, 8, 13_824, 152_064, False),
    (32.8e9, 5120, 64, 40, 8, 27_648, 152_064, False),
    (70.6e9, 8192, 80, 64, 8, 28_672, 128_256, False),
)
_POSITIONS = 131_072
_IN_NAME = re.compile(r"(?<![\dA-Za-z.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])")


def typical_model(parameters: float) -> ModelFacts:
    """Facts of a decoder with so many parameters, in the shape of the nearest published one."""
    shape = min(_SHAPES, key=lambda one: abs(math.log(one[0] / parameters)))
    _, hidden, layers, heads, key_value_heads, intermediate, vocabulary, tied = shape
    return ModelFacts(
        architecture="assumed",
        parameters=round(parameters),
        hidden_size=hidden,
        layers=layers,
        vocabulary_size=vocabulary,
        attention_heads=heads,
        key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        max_positions=_POSITIONS,
        tied_embeddings=tied,
        has_chat_template=False,
        revision="",
        digest="",
        weights_bytes=round(2 * parameters),
    )


def parameters_in_name(address: str) -> float | None:
    """8e9 of `hf://meta-llama/Llama-3.1-8B@0e9e39f`, 135e6 of `SmolLM2-135M`; None when no size is in the name."""
    path = re.sub(r"^[a-z]+://", "", address).split("@")[0]
    found = _IN_NAME.findall(path.replace("_", "-"))
    if not found:
        return None
    number, unit = found[-1]
    return float(number) * (1e9 if unit in "Bb" else 1e6)
