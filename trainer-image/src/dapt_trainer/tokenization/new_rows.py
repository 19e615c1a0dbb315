"""Rows for new tokens in an embedding matrix or an output head.

A new token stands for a run of old ones, its constituents; the mean of their rows is where training starts
(docs/tokenizer.md has the comparison with other beginnings). All rows are read from the matrix as it was before
any of them was written, so a new token that continues another one has the old tokens of both as its constituents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def constituent_mean_rows(old_matrix: Any, constituents: Sequence[Sequence[int]]) -> Any:
    """The mean of each new token's constituents' rows.

    Args:
        old_matrix: [old rows, width], or [old rows] for a head's bias; a tensor or a numpy array, not changed.
        constituents: for each new token the ids of its old tokens; one that occurs twice counts twice.

    Returns:
        A tensor [new tokens, width] (or [new tokens]) of the matrix' own type; the mean is taken in fp32.

    Raises:
        ValueError: a token has no constituents, or one has no row.
    """
    import torch

    old = torch.as_tensor(old_matrix)
    for ids in constituents:
        if not ids or not all(0 <= number < old.shape[0] for number in ids):
            raise ValueError(f"constituents {list(ids)} of a matrix with {old.shape[0]} rows")
    rows = torch.empty((len(constituents), *old.shape[1:]), dtype=old.dtype)
    for place, ids in enumerate(constituents):
        rows[place] = old[list(ids)].float().mean(dim=0).to(old.dtype)
    return rows


def random_rows(old_matrix: Any, count: int, *, seed: int) -> Any:
    """Normal values around 0 with the old matrix' standard deviation: what a new row gets without thought.

    Args:
        old_matrix: [old rows, width]; a tensor or a numpy array.
        count: new tokens.
        seed: equal seeds give equal rows.

    Returns:
        A tensor [new tokens, width] of the matrix' own type.
    """
    import torch

    old = torch.as_tensor(old_matrix)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((count, *old.shape[1:]), generator=generator) * old.float().std()
    return values.to(old.dtype)
