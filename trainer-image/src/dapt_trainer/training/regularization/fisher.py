"""The diagonal of the Fisher information: how much general text depends on each weight.

F_i = E_x E_{y ~ p(.|x)} [ (d log p(y | x) / d theta_i)^2 ], with the labels y drawn from the model itself (Kunstner et
al. 2019: with the labels of the data it would be the empirical Fisher, which is something else) and the square taken
of each sequence's gradient: the square of a batch's mean gradient shrinks towards the square of the mean, which is 0 at
a minimum. A sequence is one observation, so log p(y | x) is the sum over its places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from dapt_trainer.training.regularization.penalty import Predictions, Row, causal_predictions


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
    with _only_trained(model, names) as chosen:
        sums = {name: zeros_for(weight) for name, weight in chosen.items()}
        hooks = [
            weight.register_post_accumulate_grad_hook(partial(_take_square, sums[name]))
            for name, weight in chosen.items()
        ]
        try:
            for number, row in rows:
                _sampled_backward(model, row, _seed_of(seed, number), predictions)
                if after_row is not None:
                    after_row()
        finally:
            for hook in hooks:
                hook.remove()
    return sums


def estimate_shared_fisher(
    model: Any,
    rounds: Iterable[tuple[int | None, Row]],
    names: Iterable[str],
    owners: Mapping[str, int],
    *,
    seed: int,
    rank: int,
    after_row: Callable[[], None],
    predictions: Predictions = causal_predictions,
) -> dict[str, torch.Tensor]:
    """As `estimate_fisher` over all ranks of a process group, each with a sequence a round; the sums of this rank's
    weights alone, so that no rank ever holds those of all.

    Args:
        model: as there.
        rounds: as many on every rank: number and sequence; without a number the sequence does not count.
        names: as there, the same on every rank.
        owners: rank that keeps the sum, by name.
        seed: as there.
        rank: this one.
        after_row: as there.
        predictions: as there.
    """
    with _only_trained(model, names) as chosen:
        sums = {name: zeros_for(weight) for name, weight in chosen.items() if owners[name] == rank}
        for number, row in rounds:
            _sampled_backward(model, row, _seed_of(seed, number or 0), predictions)
            for name, weight in chosen.items():  # the same order on every rank, whatever autograd's was
                square = zeros_for(weight)
                if weight.grad is not None and number is not None:
                    _take_square(square, weight)
                weight.grad = None
                dist.reduce(square, dst=owners[name])
                if name in sums:
                    sums[name] += square
            after_row()
    return sums


def zeros_for(weight: torch.Tensor) -> torch.Tensor:
    """fp32 zeros in the weight's shape and place."""
    return torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)


@contextlib.contextmanager
def _only_trained(model: Any, names: Iterable[str]) -> Iterator[dict[str, torch.nn.Parameter]]:
    weights = dict(model.named_parameters())
    chosen = {name: weights[name] for name in names}
    trained = {name: weight.requires_grad for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.requires_grad_(name in chosen)
    try:
        yield chosen
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(trained[name])


def _take_square(total: torch.Tensor, weight: torch.Tensor) -> None:
    """Add the squared gradient and free it at once: as a hook, gradients of a whole model never stand side by side."""
    if weight.grad is not None:
        gradient = weight.grad.float()
        total.addcmul_(gradient, gradient)
        weight.grad = None


def _sampled_backward(model: Any, row: Row, seed: int, predictions: Predictions) -> None:
    """Gradients of one sequence's log-likelihood, its labels drawn from the model."""
    logits = predictions(model, row).float()
    generator = torch.Generator(logits.device).manual_seed(seed)
    with torch.no_grad():
        drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
    functional.cross_entropy(logits, drawn, reduction="sum").backward()


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
