"""Defines the interface between a penalty, the training loop and the model's predictions.

A training loop uses a penalty like this:

    penalty = single_process_penalty(config, model, general=rows)
    for step in range(steps):
        loss(step).backward()            # as many micro-batches as there are
        penalty.add_gradients(step)      # once an optimizer step
        clip, optimizer.step(), optimizer.zero_grad()
        penalty.value()                  # nats, at the weights that the step started from

The loss that is trained is the mean loss of the batch's tokens plus the penalty, whatever the number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import torch

from dapt_trainer.errors import InputError
from dapt_trainer.modeling.attention import Batch
from dapt_trainer.modeling.labels import IGNORED_LABEL

Predictions = Callable[[torch.nn.Module, Batch], torch.Tensor]
"""Returns the logits [n, V] of a model at the n positions of a batch whose next token has a label."""


class Penalty(Protocol):
    """Adds a term to the loss of each optimizer step."""

    before_last_backward: bool
    """True: it runs backward passes of its own, so `add_gradients` is called before the step's last one. False: it adds
    to finished gradients, after the last one (and after their reduction over ranks)."""

    def add_gradients(self, step: int, /) -> None:
        """Add the penalty's gradient to the gradients, once an optimizer step; `step` counts from 0."""
        ...

    def value(self) -> torch.Tensor | float:
        """Return the penalty in nats when gradients were last added; the sum over the ranks is the whole.

        A tensor lies where it was computed, so that the step can read it together with its other numbers.
        """
        ...

    def held_bytes(self) -> int:
        """Return the memory that it keeps between steps on this rank."""
        ...


def causal_predictions(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the logits [n, V] of a causal language model at the positions whose next token has a label."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits: torch.Tensor = model(**inputs).logits
    return logits[:, :-1][labelled(batch)]


def labelled(batch: Batch) -> torch.Tensor:
    """Return which positions have a next token with a label: bool [rows, L - 1]."""
    labels: torch.Tensor = batch["labels"]
    return labels[:, 1:] != IGNORED_LABEL


Group = Literal["all", "attention", "mlp"]
_COMPONENTS = {
    "attention": frozenset({"self_attn", "attention", "attn", "self_attention"}),
    "mlp": frozenset({"mlp", "feed_forward", "ffn", "block_sparse_moe"}),
}


def penalized_names(names: Iterable[str], group: Group, *, model_type: str = "") -> list[str]:
    """Return those of the weights' names that belong to the group, in their order.

    Raises:
        InputError: none does.
    """
    components = _COMPONENTS.get(group)
    chosen = [name for name in names if components is None or components.intersection(name.split("."))]
    if not chosen:
        raise InputError(
            f"pretraining.regularization.ewc.parameters: {group} names no trained weight of a model of type "
            f"{model_type or 'unknown'}; write all"
        )
    return chosen
