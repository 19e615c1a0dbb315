"""Which attention keeps packed documents apart, by device and by what is installed; and the batches that it wants.

On a GPU a mask of ours would cost SDPA its flash kernel. So there it is flash-attention's varlen kernel where that is
installed (all rows of a micro-batch one after the other, with the documents' borders), else FlexAttention (compiled,
with a block mask of documents). On the CPU, and where a model supports neither, SDPA gets a mask made from position
ids. All three give a document what it gets alone (tests/trainer/training/test_architectures.py, tests/gpu).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

VARLEN, FLEX, SDPA, EAGER = "flash_attention_2", "flex_attention", "sdpa", "eager"


@dataclass(frozen=True)
class Attention:
    """The choice, with its reason."""

    implementation: str
    """transformers' name."""
    reason: str
    collate: Callable[[Sequence[dict[str, torch.Tensor]]], dict[str, Any]]
    """Rows to a batch as the implementation wants it."""

    @property
    def text(self) -> str:
        """For log and report."""
        return f"{self.implementation}: {self.reason}"


def choose_attention(
    model: Any, device: torch.device, *, document_boundaries: bool, precision: str
) -> Attention:
    """The fastest attention that keeps documents apart on this device.

    Args:
        model: of transformers; says what it supports.
        device: where it trains.
        document_boundaries: whether documents of a row must not see each other.
        precision: `bf16` or `fp32`; flash-attention has no fp32 kernel.
    """
    plain = plain_attention(model)
    if device.type == "cpu":
        return Attention(plain, "on the CPU, documents kept apart by a mask from position ids", stack_rows)
    if not document_boundaries and plain == SDPA:
        return Attention(SDPA, "rows are one text each, SDPA's causal flash kernel needs no mask", stack_rows)
    if precision == "bf16" and _has_flash_attention() and getattr(model, "_supports_flash_attn", False):
        return Attention(
            VARLEN, "flash-attn is installed, documents kept apart by its varlen kernel", flatten_rows
        )
    if _has_flex_attention() and getattr(model, "_supports_flex_attn", False):
        return Attention(
            FLEX, "flash-attn is not usable here, documents kept apart by a block mask", stack_rows
        )
    return Attention(
        plain,
        f"{type(model).__name__} takes neither flash-attn here nor FlexAttention, documents kept apart by a mask",
        stack_rows,
    )


def plain_attention(model: Any) -> str:
    """What needs no package and no compiler: SDPA, or matrices by hand where a model does what SDPA cannot (Gemma 2
    caps attention's logits)."""
    return SDPA if getattr(model, "_supports_sdpa", True) else EAGER


def _has_flash_attention() -> bool:
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())


def _has_flex_attention() -> bool:
    from transformers.utils.import_utils import is_torch_flex_attn_available

    return bool(is_torch_flex_attn_available())


def use_attention(model: Any, attention: Attention) -> None:
    """Have the model's layers use the chosen one."""
    if model.config._attn_implementation != attention.implementation:
        model.set_attn_implementation(attention.implementation)


@contextlib.contextmanager
def unpacked_attention(model: Any) -> Iterator[None]:
    """Plain attention while the block runs.

    Scoring has one document a row and many shapes, for which FlexAttention would compile again and again.
    """
    from dapt_trainer.modeling.sharding import unwrapped

    core = unwrapped(model)
    used, plain = core.config._attn_implementation, plain_attention(core)
    if used in (plain, EAGER):
        yield
        return
    core.set_attn_implementation(plain)
    try:
        yield
    finally:
        core.set_attn_implementation(used)


def flatten_rows(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Rows one after the other as one [1, rows x sequence_length], with the documents' borders for the varlen kernel.

    A document starts where its position is 0. The borders are given, because transformers would else look for them in
    every layer, each time waiting for the accelerator; and it finds them in a batch of one row alone. A row's first
    label must be -100, as `PackedDataset` has it: the row before does not predict it.

    Raises:
        ValueError: a row starts in the middle of a document.
    """
    batch: dict[str, Any] = {
        name: torch.cat([row[name] for row in rows])[None]
        for name, value in rows[0].items()
        if isinstance(value, torch.Tensor)
    }
    positions_n = batch["position_ids"][0]
    starts = torch.nonzero(positions_n == 0).flatten()
    if any(int(row["position_ids"][0]) for row in rows):
        raise ValueError("a packed row must start with a document's first token")
    borders = torch.cat([starts, torch.tensor([len(positions_n)])]).to(torch.int32)
    longest = int((borders[1:] - borders[:-1]).max())
    return batch | {
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def stack_rows(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of equal length as one batch [rows, sequence_length]; tensors only."""
    return {
        name: torch.stack([row[name] for row in rows])
        for name, value in rows[0].items()
        if isinstance(value, torch.Tensor)
    }
