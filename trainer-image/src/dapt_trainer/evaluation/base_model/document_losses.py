"""Stores the base model's loss on each held-out document, and computes how sure a difference from it is.

The loss of a text is a ratio, nats over tokens, and so is the difference of two models' losses on the same documents:
sum(D) / sum(n), with D a document's nats under the one model minus those under the other and n its tokens. Tokens of a
document are no independent draws, documents are. So the standard error is that of the ratio by the delete-one
jackknife over documents:

    r(j) = (sum(D) - D(j)) / (sum(n) - n(j)),    variance = (m - 1) / m x sum over j of (r(j) - mean of r)^2

with m documents (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11; Cochran 1977, "Sampling
Techniques", 6.17, for ratios). To first order it is m / (m - 1) x sum of (D - r n)^2 / sum(n)^2, the linearized one.
Most of what makes a document hard is hard for both models, so the paired error is far below that of either loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from dapt_contract.base import Contract, Count
from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.measure import Side
from dapt_trainer.data.packing.held_out import Half
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.base_model.record_lines import read_records, record_lines, records_digest

LOSSES: Final = "losses.jsonl"
"""Name of the file in the folder of the baseline's run."""


class DocumentLoss(Contract):
    """Holds the loss of one model on one held-out document; documents stand in the order of the held-out text."""

    side: Side
    half: Half
    tokens: Count
    """Scored tokens in the base model's tokenizer."""
    nats: float
    """Sum over the tokens."""


def paired_error(measured: Sequence[DocumentLoss], base: Sequence[DocumentLoss]) -> float | None:
    """Return the standard error of the difference of two models' losses, in nats a token.

    None where it cannot be estimated: under two documents with tokens, or losses whose sums or squares are no
    finite numbers.

    Args:
        measured: losses of a model on the documents of one half.
        base: losses of the base model on the same half.

    Raises:
        InputError: they are not on the same documents.
    """
    if [_place(loss) for loss in measured] != [_place(loss) for loss in base]:
        raise InputError(
            f"held-out text: the base model was measured on {len(base)} documents, this model on {len(measured)}, and "
            "they are not the same ones; measure the base model again"
        )
    pairs = [
        (own.nats - of_base.nats, own.tokens)
        for own, of_base in zip(measured, base, strict=True)
        if own.tokens > 0
    ]
    count = len(pairs)
    if count < 2 or not all(math.isfinite(difference) for difference, _ in pairs):
        return None
    try:
        nats, tokens = math.fsum(difference for difference, _ in pairs), sum(own for _, own in pairs)
        without = [(nats - difference) / (tokens - own) for difference, own in pairs]
        mean = math.fsum(without) / count
        error = math.sqrt((count - 1) / count * math.fsum((ratio - mean) ** 2 for ratio in without))
    except OverflowError:
        return None  # no double holds the sum or a square of losses of 1e160 nats
    return error if math.isfinite(error) else None


def _place(loss: DocumentLoss) -> tuple[Side, Half, int]:
    return loss.side, loss.half, loss.tokens


def write_losses(path: Path, losses: Iterable[DocumentLoss]) -> None:
    """Write one line for each document, atomically.

    Raises:
        OSError: the volume is full or read-only.
    """
    write_bytes_atomically(path, record_lines(losses))


def losses_digest(losses: Iterable[DocumentLoss]) -> str:
    """Return the hexadecimal SHA-256 of the file that `write_losses` writes."""
    return records_digest(losses)


def read_losses(work: Path, name: str, expected_digest: str) -> tuple[DocumentLoss, ...]:
    """Read what `write_losses` wrote; arguments and errors are those of `read_records`."""
    return read_records(work, name, DocumentLoss, "losses", expected_digest)
