"""Divides texts that a model has to generate over the ranks, in batches, and gives every rank all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import torch
from pydantic import TypeAdapter

from dapt_trainer.distributed import Ranks
from dapt_trainer.evaluation.scoring import Advance, batches_by_length
from dapt_trainer.evaluation.sharing.work_share import ALL_WORK, WorkShare

BATCH_TOKENS: Final = 16_384
"""Padded tokens of one batch, those to generate included: keys and values of an 8B model take 2 GiB."""
_TEXTS: Final = TypeAdapter(dict[int, str])
Value = TypeVar("Value")


class SharedGeneration:
    """Lets each share of the ranks generate some of the texts. By default one process generates all."""

    def __init__(self, ranks: Ranks | None = None, share: WorkShare = ALL_WORK) -> None:
        """Args:
        ranks: of the stage; None: a single process.
        share: of this rank, by `share_of_generation`.
        """
        self._ranks = ranks
        self._share = share

    def from_first(self, compute: Callable[[], Value], value_type: TypeAdapter[Value]) -> Value:
        """Return what the first rank computes, on every rank; for what decides which texts are generated."""
        return compute() if self._ranks is None else self._ranks.from_first(compute, value_type)

    def run(
        self,
        lengths: Sequence[int],
        generate: Callable[[list[int]], list[str]],
        advance: Advance | None = None,
    ) -> list[str]:
        """Return all texts in order, on every rank.

        Args:
            lengths: tokens of each text with its prompt, at most; the same on every rank.
            generate: returns the texts of some numbers, as one batch. All ranks of a share call it alike.
            advance: called after each batch, equally often on every rank.
        """
        share = self._share
        # Few texts are spread over all shares: no batch has more of them than a share's part.
        most = min(BATCH_TOKENS, -(-len(lengths) // share.count) * max(lengths, default=1))
        batches = batches_by_length(lengths, most)
        rounds = -(-len(batches) // share.count)
        texts: dict[int, str] = {}
        for number in range(rounds):
            batch_number = number * share.count + share.index
            if batch_number < len(batches):
                batch = batches[batch_number]
                texts |= zip(batch, generate(batch), strict=True)
            if advance is not None:
                advance((number + 1) / rounds)
        if self._ranks is not None:
            # One rank of each share counts, so that all go on with the same texts.
            own = texts if share.is_counted else {}
            texts = {
                number: text
                for of_rank in self._ranks.gather(own, _TEXTS)
                for number, text in of_rank.items()
            }
        return [texts[number] for number in range(len(lengths))]


IN_ONE_PROCESS: Final = SharedGeneration()
"""Generates all texts here."""


def padded_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [B, L] with their padding on the left, and the mask [B, L].

    Args:
        rows: token ids of each prompt.
        pad_id: id of the padding.
    """
    longest = max(len(row) for row in rows)
    ids_bl = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask_bl = torch.zeros_like(ids_bl)
    for number, row in enumerate(rows):
        ids_bl[number, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask_bl[number, longest - len(row) :] = 1
    return ids_bl, mask_bl
