"""Computes the rows of new tokens in an embedding matrix or an output head.

A new token stands for a run of old ones, its constituents; its training starts from the mean of their rows
(docs/tokenizer.md compares it with other starts). All rows are read from the old matrix, so a new token that continues
another new one has the old tokens of both as its constituents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Matrix = torch.Tensor | npt.NDArray[np.float32]


def constituent_mean_rows(old_matrix: Matrix, constituents: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the mean of the rows of each new token's constituents.

    Args:
        old_matrix: [old rows, width], or [old rows] for a head's bias; a tensor or a numpy array, not changed.
        constituents: for each new token the ids of its old tokens; one that occurs twice counts twice.

    Returns:
        A tensor [new tokens, width] (or [new tokens]) of the matrix' own type; the mean is taken in fp32.

    Raises:
        ValueError: a token has no constituents, or one has no row.
    """
    old = torch.as_tensor(old_matrix)
    for ids in constituents:
        if not ids or not all(0 <= number < old.shape[0] for number in ids):
            raise ValueError(f"constituents {list(ids)} of a matrix with {old.shape[0]} rows")
    rows = torch.empty((len(constituents), *old.shape[1:]), dtype=old.dtype)
    for place, ids in enumerate(constituents):
        # fp32: a sum in bf16 keeps 8 bits of its largest term.
        rows[place] = old[list(ids)].float().mean(dim=0).to(old.dtype)
    return rows


def random_rows(old_matrix: Matrix, count: int, *, seed: int) -> torch.Tensor:
    """Return normal values around 0 with the old matrix' standard deviation, the usual start of a new row.

    Args:
        old_matrix: [old rows, width]; a tensor or a numpy array.
        count: new tokens.
        seed: equal seeds give equal rows.

    Returns:
        A tensor [new tokens, width] of the matrix' own type.
    """
    old = torch.as_tensor(old_matrix)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((count, *old.shape[1:]), generator=generator) * old.float().std()
    return values.to(old.dtype)
