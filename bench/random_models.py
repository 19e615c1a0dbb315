"""Shapes of random models that several benches train, and how a toy's configuration takes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """Shape of a Llama with gated MLPs, a tied head, and two query heads for each key-value head."""

    hidden: int
    inner: int
    layers: int
    heads: int


SIZES = {
    "5M": Size(256, 704, 6, 4),
    "15M": Size(384, 1024, 7, 6),
    "50M": Size(640, 1728, 9, 10),
    "135M": Size(768, 2048, 21, 12),
    "200M": Size(1024, 2816, 15, 16),
    "500M": Size(1280, 3520, 27, 20),
}
"""By about how many parameters a model of it has, with a vocabulary of 400 to 8,192 tokens."""


def give_shape(config: Any, size: Size) -> None:
    """Change a Llama's configuration to the shape of a size."""
    config.update(
        {
            "hidden_size": size.hidden,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads // 2,
            "head_dim": size.hidden // size.heads,
        }
    )
