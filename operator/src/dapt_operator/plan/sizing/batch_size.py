"""Default global batches, which shrink where data is small, so that a training has enough optimizer steps.

A learning rate that warms up and decays, and checkpoints to choose from, need steps: data for 64 sequences a step and
100 steps is read in larger batches than data for fewer. The default is a power of two, so that the ranks of most
layouts can share it and a change of the layout keeps it. A batch that the spec asks for is never changed.
"""

from __future__ import annotations

import math
from typing import Final

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec

LARGEST_DEFAULT: Final = 64
"""Sequences of a step. Larger batches gain little for the sizes of adaptation corpora."""
ENOUGH_STEPS: Final = 100
"""Steps that a default leaves: a warm-up of a hundredth is one step, and ten checkpoints lie ten steps apart."""
FEW_STEPS: Final = 20
"""A training with fewer steps is warned about."""


def default_batch_size(shared_by: int, sequences: float | None, *, largest: int = LARGEST_DEFAULT) -> int:
    """Return the global batch for data of this size.

    Args:
        shared_by: ranks times micro-batch; the batch is a multiple of it.
        sequences: sequences, or pairs, of the whole training; None: not known, or the number of steps is given.
        largest: never exceeded, but by a single multiple of `shared_by`.
    """
    size = largest
    if sequences is not None and sequences < largest * ENOUGH_STEPS:
        size = min(largest, 2 ** int(math.log2(max(1.0, sequences / ENOUGH_STEPS))))
    return max(1, size // shared_by) * shared_by


def pretraining_batch_size(
    spec: DomainAdaptationSpec, ranks: int, *, total_tokens: int | None, sequence_length_tokens: int
) -> int:
    """Return pretraining's global batch: as requested, else the default for its tokens.

    With a budget in steps the user has chosen their number, so the batch stays large.

    Args:
        spec: the desired spec.
        ranks: that share the batch.
        total_tokens: of the whole training; None: not known yet.
        sequence_length_tokens: length of a sequence.
    """
    pretraining = spec.pretraining
    if pretraining.global_batch_size is not None:
        return pretraining.global_batch_size
    is_known = total_tokens is not None and pretraining.budget.steps is None
    sequences = total_tokens / sequence_length_tokens if is_known and total_tokens is not None else None
    return default_batch_size(ranks * (pretraining.micro_batch_size or 1), sequences)


def smallest_pretraining_batch(spec: DomainAdaptationSpec, ranks: int) -> int:
    """Return the smallest batch that pretraining may get, which a corpus has to fill at least once."""
    pretraining = spec.pretraining
    if pretraining.budget.steps is not None or pretraining.global_batch_size is not None:
        return pretraining_batch_size(spec, ranks, total_tokens=None, sequence_length_tokens=1)
    return ranks * (pretraining.micro_batch_size or 1)
