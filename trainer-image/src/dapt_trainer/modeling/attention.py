"""Chooses the attention that keeps packed documents apart, by device and installed packages, and builds its batches.

On a GPU a mask of ours would cost SDPA its flash kernel. So there it is a varlen kernel (all rows of a micro-batch in
one sequence, with the documents' borders): flash-attention's where that is installed, else torch's own, which is made
from it. Where a model needs what torch's lacks, it is FlexAttention (compiled, with a block mask of documents). On the
CPU, and where a model supports none of them, SDPA gets a mask made from position ids. All compute for a document what
it gets alone (tests/trainer/training/test_architectures.py, tests/gpu).

Shapes: B rows, H heads, L tokens of a row, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.attention import varlen
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import is_flash_attn_2_available
from transformers.utils.import_utils import is_torch_flex_attn_available

from dapt_trainer.modeling.loading.sharding import unwrapped

VARLEN, FLEX, SDPA, EAGER = "flash_attention_2", "flex_attention", "sdpa", "eager"
TORCH_VARLEN = "dapt_torch_varlen"
"""Name in transformers of torch's varlen kernel."""
TAKES_BORDERS = (VARLEN, TORCH_VARLEN)
"""Kernels whose batches come with the documents' borders, of `flatten_rows`."""
FEWEST_BORDERS = 16
LARGEST_HEAD = 256
"""Elements of a head that torch's varlen kernel takes at most."""
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
    if precision == "bf16" and has_torch_varlen(model):
        register_torch_varlen()
        return Attention(TORCH_VARLEN, "documents kept apart by torch's varlen kernel", flatten_rows)
    if is_torch_flex_attn_available() and getattr(model, "_supports_flex_attn", False):
        return Attention(
            FLEX, "no varlen kernel is usable here, documents kept apart by a block mask", stack_rows
        )
    return Attention(
        plain,
        f"{type(model).__name__} takes neither a varlen kernel here nor FlexAttention, documents kept apart by a mask",
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


def has_torch_varlen(model: PreTrainedModel) -> bool:
    """Return whether torch's varlen kernel computes this model's attention: without cap, sink, chunk and dropout."""
    if not (
        getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_flash_attn", False)
    ):
        return False
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    changes = ("attn_logit_softcapping", "attention_chunk_size", "v_head_dim", "attention_dropout")
    is_plain = not any(getattr(config, name, None) for name in changes)
    has_sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
    return is_plain and not has_sinks and head <= LARGEST_HEAD and head % 8 == 0


def register_torch_varlen() -> None:
    """Make torch's varlen kernel an attention of transformers.

    It has no function that makes masks, so transformers makes none, and does not look at positions for documents, which
    it would have to wait for the accelerator to do.
    """
    AttentionInterface.register(TORCH_VARLEN, torch_varlen_attention)


def torch_varlen_attention(
    _module: torch.nn.Module,
    query_bhld: torch.Tensor,
    key_bhld: torch.Tensor,
    value_bhld: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each document, [1, L, H, D]; rows are one after the other (`flatten_rows`)."""
    query, key, value = (part[0].transpose(0, 1) for part in (query_bhld, key_bhld, value_bhld))
    output = varlen.varlen_attn(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        # Transformers counts the token itself as part of its window.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
        # Also rules out cuDNN's kernel, of which we do not know that it takes the empty documents of padded borders.
        num_splits=1,
    )
    # A tensor, since nothing else is asked for.
    return cast("torch.Tensor", output)[None], None


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
    # Blocks are compiled again for each size, so both are rounded up to one of few. The documents between the
    # last border and its copies are empty, and kernels skip what is past a document's end.
    longest = _next_power_of_two(int((borders[1:] - borders[:-1]).max()))
    missing = max(FEWEST_BORDERS, _next_power_of_two(len(borders))) - len(borders)
    borders = torch.nn.functional.pad(borders, (0, missing), value=len(positions_n))
    return batch | {
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def stack_rows(rows: Sequence[Row]) -> Batch:
    """Return rows of equal length as one batch [rows, L]; entries that are no tensors are left out."""
    return {name: torch.stack([row[name] for row in rows]) for name in _tensors(rows[0])}


def _tensors(row: Mapping[str, object]) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, torch.Tensor)]
