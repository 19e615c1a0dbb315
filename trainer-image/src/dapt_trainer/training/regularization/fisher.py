"""The diagonal of the Fisher information: how much general text depends on each weight.

F_i = E_x E_{y ~ p(.|x)} [ (d log p(y | x) / d theta_i)^2 ], with the labels y drawn from the model itself (Kunstner et
al. 2019: with the labels of the data it would be the empirical Fisher, which is something else) and the square taken
of each sequence's gradient: the square of a batch's mean gradient shrinks towards the square of the mean, which is 0 at
a minimum. A sequence is one observation, so log p(y | x) is the sum over its places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional

from dapt_trainer.training.regularization.base import Predictions, Row, causal_predictions


def estimate_fisher(
    model: Any,
    rows: Iterable[tuple[int, Row]],
    names: Iterable[str],
    *,
    seed: int,
    predictions: Predictions = causal_predictions,
    after_row: Callable[[], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Sums of squared gradients over sequences, fp32, by the weights' names; not scaled yet.

    Args:
        model: in evaluation mode, at the weights that are the anchor.
        rows: (number of the sample, one sequence with a first dimension of 1); labels are a function of seed and
            number.
        names: of the weights, as `named_parameters` has them.
        seed: of the drawn labels.
        predictions: the logits of a sequence.
        after_row: called after each sequence.
    """
    weights = dict(model.named_parameters())
    chosen = {name: weights[name] for name in names}
    sums = {
        name: torch.zeros_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
        for name, weight in chosen.items()
    }

    def squares_into(total: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def add(weight: torch.Tensor) -> None:
            if weight.grad is not None:
                gradient = weight.grad.float()
                total.addcmul_(gradient, gradient)
                weight.grad = None  # freed at once: gradients of the whole model never stand side by side

        return add

    trained = {name: weight.requires_grad for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.requires_grad_(name in chosen)
    hooks = [
        weight.register_post_accumulate_grad_hook(squares_into(sums[name])) for name, weight in chosen.items()
    ]
    try:
        for number, row in rows:
            logits = predictions(model, row).float()
            generator = torch.Generator(logits.device).manual_seed(_seed_of(seed, number))
            with torch.no_grad():
                drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
            functional.cross_entropy(logits, drawn, reduction="sum").backward()
            if after_row is not None:
                after_row()
    finally:
        for hook in hooks:
            hook.remove()
        for name, weight in weights.items():
            weight.requires_grad_(trained[name])
    return sums


def scaled_to_mean_one(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums over their mean over all weights of the group; in place.

    Raises:
        ValueError: no gradient reached the group.
    """
    mean = mean_of(sums)
    if not mean > 0.0:
        raise ValueError(f"the Fisher information of {len(sums)} weights is {mean:g} on average")
    for total in sums.values():
        total.div_(mean)
    return sums


def mean_of(sums: Mapping[str, torch.Tensor]) -> float:
    """The mean over all weights of the group."""
    total = sum(float(one.sum(dtype=torch.float64)) for one in sums.values())
    return float(total / sum(one.numel() for one in sums.values()))


def _seed_of(seed: int, number: int) -> int:
    """Different for every pair; a 63-bit mix (splitmix64's multipliers)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed & (2**63 - 1)
