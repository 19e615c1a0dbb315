"""Lets consecutive ranks share one sequence: each computes its part of the tokens, and attention sees all of them.

Everything but attention works token by token, so a rank holds activations of its own tokens alone. Around attention the
ranks exchange: queries, keys and values of all tokens for a share of the heads, and back (Jacobs et al. 2023, DeepSpeed
Ulysses). DeepSpeed's own layer drops the mask and with it the borders of packed documents, so the exchange is ours and
the attention in it is the one that the device would use anyway, with the borders of the whole row.

For DeepSpeed the ranks stay data-parallel: the loss is a sum over tokens, and each rank adds its own.
Shapes: B rows, H heads, L tokens of a row, l = L / ranks, D head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.attention import EAGER, FLEX, TAKES_BORDERS, Attention, Batch, Collate, Row
from dapt_trainer.modeling.labels import IGNORED_LABEL

SHARED_SEQUENCE = "dapt_shared_sequence"
"""Name of the attention in transformers."""
_FIELD = "pretraining.distribution.sequenceParallel"
_ALL_POSITIONS = "row_position_ids"
"""Entry of a batch: the positions of the whole rows, int64 [B, L]; transformers passes it on to attention."""


def share_sequences(attention: Attention, model: PreTrainedModel, ranks: Ranks, size: int) -> Attention:
    """Return the attention by which `size` consecutive ranks share each sequence; all ranks call it.

    Args:
        attention: that the device uses; it computes what is exchanged.
        model: whose heads are divided.
        ranks: of the run.
        size: ranks of a sequence; 1: nothing is shared.

    Raises:
        InputError: ranks or heads cannot be divided so, or the model has attention of its own.
    """
    if size == 1:
        return attention
    heads = model.config.num_attention_heads
    key_heads = getattr(model.config, "num_key_value_heads", None) or heads
    if ranks.world_size % size or key_heads % size:
        raise InputError(
            f"{_FIELD} is {size}; it must divide the {ranks.world_size} ranks and the model's {key_heads} key-value "
            "heads"
        )
    if not getattr(model, "_supports_attention_backend", False) or attention.implementation == EAGER:
        raise InputError(
            f"{_FIELD} is {size}, and {type(model).__name__} has attention of its own here, whose heads cannot be "
            "divided over ranks; set it to 1"
        )
    # Every rank takes part in creating every group.
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, ranks.world_size, size)]
    own = cast("dist.ProcessGroup", groups[ranks.rank // size])  # of the others torch gives a number
    shared = _SharedAttention(own, attention.implementation)
    AttentionInterface.register(SHARED_SEQUENCE, shared)
    AttentionMaskInterface.register(SHARED_SEQUENCE, _no_mask)
    return dataclasses.replace(
        attention,
        implementation=SHARED_SEQUENCE,
        reason=f"{size} ranks share a sequence; {attention.text}",
        collate=share_of_rank(attention.collate, ranks.rank % size, size),
    )


def share_of_rank(collate: Collate, rank: int, size: int) -> Collate:
    """Return a collate function whose batches hold this rank's part of each sequence.

    Labels are shifted before the rows are cut: the last token of a part predicts the first of the next one.

    Raises:
        InputError: from the function, when the rows' length cannot be divided.
    """

    def part(rows: Sequence[Row]) -> Batch:
        batch = collate(rows)
        positions_bl = batch["position_ids"]
        length = positions_bl.shape[1]
        if length % size:
            raise InputError(f"{_FIELD} is {size}; it must divide the {length} tokens of a sequence")
        own = slice(rank * length // size, (rank + 1) * length // size)
        shifted_bl = pad(batch["labels"], (0, 1), value=IGNORED_LABEL)[:, 1:]
        return batch | {
            "input_ids": batch["input_ids"][:, own],
            "position_ids": positions_bl[:, own],
            "labels": shifted_bl[:, own],
            "shift_labels": shifted_bl[:, own],
            _ALL_POSITIONS: positions_bl,
        }

    return part


class _SharedAttention:
    """Is an attention function of transformers: exchanges, computes a share of the heads, exchanges back."""

    def __init__(self, group: dist.ProcessGroup, implementation: str) -> None:
        self._group = group
        self._implementation = implementation
        self._compute: Callable[..., tuple[torch.Tensor, object]] = ALL_ATTENTION_FUNCTIONS[implementation]
        # Of the newest batch: it is the same in all layers, but for those with another window.
        self._positions_bl: torch.Tensor | None = None
        self._masks: dict[int | None, object] = {}

    def __call__(
        self,
        module: torch.nn.Module,
        query_bhld: torch.Tensor,
        key_bhld: torch.Tensor,
        value_bhld: torch.Tensor,
        _attention_mask: torch.Tensor | None,
        *,
        row_position_ids: torch.Tensor,
        sliding_window: int | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, None]:
        query, key, value = (
            exchange(part, self._group, split=1, join=2) for part in (query_bhld, key_bhld, value_bhld)
        )
        mask = self._mask(row_position_ids, sliding_window)
        kwargs["position_ids"] = row_position_ids
        output, _ = self._compute(module, query, key, value, mask, sliding_window=sliding_window, **kwargs)
        # [B, L, H / ranks, D] -> [B, l, H, D]
        return exchange(output, self._group, split=1, join=2), None

    def _mask(self, positions_bl: torch.Tensor, window: int | None) -> object:
        if self._implementation in TAKES_BORDERS:
            return None  # the batch has the documents' borders
        if self._positions_bl is not positions_bl:
            self._positions_bl, self._masks = positions_bl, {}
        if window not in self._masks:
            documents_bl = (positions_bl == 0).cumsum(dim=1)
            make = _block_mask if self._implementation == FLEX else _whole_mask
            self._masks[window] = make(documents_bl, window)
        return self._masks[window]


def _whole_mask(documents_bl: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return bool [B, 1, L, L]: true where the first token attends to the second."""
    places = torch.arange(documents_bl.shape[1], device=documents_bl.device)
    distance = places[:, None] - places[None, :]
    is_seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return (is_seen & (documents_bl[:, :, None] == documents_bl[:, None, :]))[:, None]


def _block_mask(documents_bl: torch.Tensor, window: int | None) -> object:
    """Return the same as a block mask of FlexAttention."""
    from torch.nn.attention.flex_attention import create_block_mask

    def is_seen(
        batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        is_before = (query >= key) if window is None else (query >= key) & (query - key < window)
        return is_before & (documents_bl[batch, query] == documents_bl[batch, key])

    rows, length = documents_bl.shape
    return create_block_mask(is_seen, rows, None, length, length, device=str(documents_bl.device))


def _no_mask(*_: object, **__: object) -> None:
    """Return no mask: transformers would make one of this rank's tokens alone."""


class _Layout(Protocol):
    """Is what torch passes from the forward pass to the backward pass."""

    group: dist.ProcessGroup
    split: int
    join: int


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Layout, whole: torch.Tensor, group: dist.ProcessGroup, split: int, join: int
    ) -> torch.Tensor:
        ctx.group, ctx.split, ctx.join = group, split, join
        return _exchanged(whole, group, split, join)

    @staticmethod
    def backward(ctx: _Layout, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _exchanged(gradient, ctx.group, ctx.join, ctx.split), None, None, None


def exchange(tensor: torch.Tensor, group: dist.ProcessGroup, *, split: int, join: int) -> torch.Tensor:
    """Send the parts along one dimension to the ranks of a group, and return those received, joined along another."""
    received: torch.Tensor = _Exchange.apply(tensor, group, split, join)
    return received


def _exchanged(tensor: torch.Tensor, group: dist.ProcessGroup, split: int, join: int) -> torch.Tensor:
    parts = torch.stack(tensor.chunk(dist.get_world_size(group), dim=split))
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return torch.cat(received.unbind(), dim=join)
