"""Chooses the attention that keeps packed documents apart, by device and installed packages, and builds its batches.

On a GPU a mask of ours would cost SDPA its flash kernel. So there it is flash-attention's varlen kernel where that is
installed (all rows of a micro-batch in one sequence, with the documents' borders), else FlexAttention (compiled, with a
block mask of documents). On the CPU, and where a model supports neither, SDPA gets a mask made from position ids. All
three compute for a document what it gets alone (tests/trainer/training/test_architectures.py, tests/gpu).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available
from transformers.utils.import_utils import is_torch_flex_attn_available

from dapt_trainer.modeling.loading.sharding import unwrapped

VARLEN, FLEX, SDPA, EAGER = "flash_attention_2", "flex_attention", "sdpa", "eager"
Row = Mapping[str, torch.Tensor]
"""One packed sequence: input_ids, labels and position_ids, each int64 [L]."""
Batch = dict[str, Any]
"""Keywords of a model's forward pass: tensors, and integers where an attention kernel has such arguments."""
Collate = Callable[[Sequence[Row]], Batch]
"""Makes a batch of rows."""


@dataclass(frozen=True)
class Attention:
    """Holds the choice with its reason."""

    implementation: str
    """Name in transformers."""
    reason: str
    collate: Collate
    """Makes a batch in the form that the implementation needs."""

    @property
    def text(self) -> str:
        """Return the choice with its reason, for log and report."""
        return f"{self.implementation}: {self.reason}"


def choose_attention(
    model: PreTrainedModel, device: torch.device, *, document_boundaries: bool, precision: str
) -> Attention:
    """Return the fastest attention that keeps documents apart on this device.

    Args:
        model: of transformers; its class says what it supports.
        device: where it trains.
        document_boundaries: whether documents of a row must not attend to each other.
        precision: `bf16` or `fp32`; flash-attention has no fp32 kernel.
    """
    plain = plain_attention(model)
    if device.type == "cpu":
        return Attention(plain, "on the CPU, documents kept apart by a mask from position ids", stack_rows)
    if not document_boundaries and plain == SDPA:
        return Attention(SDPA, "rows are one text each, SDPA's causal flash kernel needs no mask", stack_rows)
    if precision == "bf16" and has_flash_attention() and getattr(model, "_supports_flash_attn", False):
        return Attention(
            VARLEN, "flash-attn is installed, documents kept apart by its varlen kernel", flatten_rows
        )
    if is_torch_flex_attn_available() and getattr(model, "_supports_flex_attn", False):
        return Attention(
            FLEX, "flash-attn is not usable here, documents kept apart by a block mask", stack_rows
        )
    return Attention(
        plain,
        f"{type(model).__name__} takes neither flash-attn here nor FlexAttention, documents kept apart by a mask",
        stack_rows,
    )


def plain_attention(model: PreTrainedModel) -> str:
    """Return the attention that needs no package and no compiler.

    It is SDPA, or explicit matrices where a model needs what SDPA lacks (Gemma 2 caps attention's logits).
    """
    return SDPA if getattr(model, "_supports_sdpa", True) else EAGER


def has_flash_attention() -> bool:
    """Return whether flash-attn is installed and usable."""
    return bool(is_flash_attn_2_available())


def use_attention(model: PreTrainedModel, attention: Attention) -> None:
    """Make the model's layers use the chosen attention."""
    if model.config._attn_implementation != attention.implementation:
        model.set_attn_implementation(attention.implementation)


@contextlib.contextmanager
def unpacked_attention(model: torch.nn.Module) -> Iterator[None]:
    """Use plain attention while the block runs, for scoring.

    Scoring has one document a row and many shapes, for each of which FlexAttention would compile again.
    """
    core = unwrapped(model)
    used, plain = core.config._attn_implementation, plain_attention(core)
    # Neither compiles anything, so there is nothing to avoid.
    if used in (plain, EAGER):
        yield
        return
    core.set_attn_implementation(plain)
    try:
        yield
    finally:
        core.set_attn_implementation(used)


def flatten_rows(rows: Sequence[Row]) -> Batch:
    """Return rows one after the other as one [1, rows x L], with the documents' borders for the varlen kernel.

    A document starts where its position is 0. A row's first label must be -100, as `PackedDataset` has it: the row
    before does not predict it.

    Raises:
        ValueError: a row starts in the middle of a document.
    """
    batch: Batch = {name: torch.cat([row[name] for row in rows])[None] for name in _tensors(rows[0])}
    positions_n = batch["position_ids"][0]
    starts = torch.nonzero(positions_n == 0).flatten()
    if any(int(row["position_ids"][0]) for row in rows):
        raise ValueError("a packed row must start with a document's first token")
    # transformers would else compute the borders in every layer, each time waiting for the accelerator, and only for
    # a batch of one row.
    borders = torch.cat([starts, torch.tensor([len(positions_n)])]).to(torch.int32)
    longest = int((borders[1:] - borders[:-1]).max())
    return batch | {
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def stack_rows(rows: Sequence[Row]) -> Batch:
    """Return rows of equal length as one batch [rows, L]; entries that are no tensors are left out."""
    return {name: torch.stack([row[name] for row in rows]) for name in _tensors(rows[0])}


def _tensors(row: Mapping[str, object]) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, torch.Tensor)]
