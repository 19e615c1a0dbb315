"""Estimates the diagonal of the Fisher information: how much general text depends on each weight.

F_i = E_x E_{y ~ p(.|x)} [ (d log p(y | x) / d theta_i)^2 ], with the labels y drawn from the model itself (Kunstner et
al. 2019: with the labels of the data it would be the empirical Fisher, which is something else) and the square taken
of each sequence's gradient: the square of a batch's mean gradient shrinks towards the square of the mean, which is 0 at
a minimum. A sequence is one observation, so log p(y | x) is the sum over its positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch.nn import functional

from dapt_trainer.modeling.attention import Batch
from dapt_trainer.training.regularization.penalty import Predictions, causal_predictions


def estimate_fisher(
    model: torch.nn.Module,
    rows: Iterable[tuple[int, Batch]],
    names: Iterable[str],
    *,
    seed: int,
    predictions: Predictions = causal_predictions,
    after_row: Callable[[], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the sums of squared gradients over sequences, fp32, by the weights' names; not scaled yet.

    Args:
        model: in evaluation mode, at the weights that are the anchor.
        rows: (number of the sample, one sequence with a first dimension of 1); labels are a function of seed and
            number.
        names: of the weights, as in `named_parameters`.
        seed: of the drawn labels.
        predictions: returns the logits of a sequence.
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
    model: torch.nn.Module,
    rounds: Iterable[tuple[int | None, Batch]],
    owners: Mapping[str, int],
    *,
    seed: int,
    rank: int,
    after_row: Callable[[], None],
) -> dict[str, torch.Tensor]:
    """Run `estimate_fisher` over all ranks, each with one sequence a round, and return the sums of this rank's weights.

    No rank ever holds the sums of all weights.

    Args:
        model: as in `estimate_fisher`.
        rounds: as many on every rank: number and sequence; without a number the sequence does not count.
        owners: by the name of each weight the rank that keeps its sum, equal and in the same order on every rank.
        seed: as in `estimate_fisher`.
        rank: this one.
        after_row: as in `estimate_fisher`.
    """
    with _only_trained(model, owners) as chosen:
        sums = {name: zeros_for(weight) for name, weight in chosen.items() if owners[name] == rank}
        for number, row in rounds:
            _sampled_backward(model, row, _seed_of(seed, number or 0), causal_predictions)
            # Here and not in hooks: the reductions need the same order on every rank, and autograd's may differ.
            for name, weight in chosen.items():
                # A rank whose sequence does not count still takes part in every reduction, with zeros.
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
    """Return fp32 zeros in the weight's shape, on its device."""
    return torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)


@contextlib.contextmanager
def _only_trained(model: torch.nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.nn.Parameter]]:
    weights = dict(model.named_parameters())
    chosen = {name: weights[name] for name in names}
    trained = {name: weight.requires_grad for name, weight in weights.items()}
    for name, weight in weights.items():
        # Else autograd would compute and keep the gradients of weights that nobody sums.
        weight.requires_grad_(name in chosen)
    try:
        yield chosen
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(trained[name])


def _take_square(total: torch.Tensor, weight: torch.Tensor) -> None:
    """Add the squared gradient and free it: used as a hook, it keeps the gradients of a whole model from coexisting."""
    if weight.grad is not None:
        gradient = weight.grad.float()
        total.addcmul_(gradient, gradient)
        weight.grad = None


def _sampled_backward(model: torch.nn.Module, row: Batch, seed: int, predictions: Predictions) -> None:
    """Compute the gradients of one sequence's log-likelihood, with labels drawn from the model."""
    # In fp32, as transformers computes its own losses.
    logits = predictions(model, row).float()
    # A generator of its own: the labels depend on the sample alone, not on how many ranks share the samples.
    generator = torch.Generator(logits.device).manual_seed(seed)
    with torch.no_grad():
        drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
    functional.cross_entropy(logits, drawn, reduction="sum").backward()


def scaled_to_mean_one(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Divide the sums by their mean over all weights of the group, in place, and return them.

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
    """Return the mean over all weights of the group."""
    # In fp64: an fp32 sum over millions of squares drops the small ones.
    total = sum(float(tensor.sum(dtype=torch.float64)) for tensor in sums.values())
    return total / sum(tensor.numel() for tensor in sums.values())


def _seed_of(seed: int, number: int) -> int:
    """Return a seed that differs for every pair: a 63-bit mix with splitmix64's multipliers."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed & (2**63 - 1)
