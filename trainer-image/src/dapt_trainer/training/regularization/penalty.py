"""What every penalty is to the training loop, and what a model's predictions are to a penalty.

In a loop by hand:

    penalty = build(config, model, general=rows)
    for step in range(steps):
        loss(step).backward()            # as many micro-batches as there are
        penalty.add_gradients(step)      # once an optimizer step
        clip, optimizer.step(), optimizer.zero_grad()
        penalty.value()                  # nats, at the weights that the step started from

The loss that is trained is the mean loss of the batch's tokens plus the penalty, whatever the number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

import torch

from dapt_trainer.errors import InputError

Row = Mapping[str, Any]
"""Packed sequences as the model gets them: input_ids, labels and position_ids, each int64 [rows, L], and what else its
attention wants."""
Predictions = Callable[[Any, Row], torch.Tensor]
"""(model, rows) -> logits [n, V] at the n places whose next token is learned."""


class Penalty(Protocol):
    """A term that is added to the loss of each optimizer step."""

    before_last_backward: bool
    """True: it makes backward passes of its own, so `add_gradients` comes before the step's last one. False: it adds
    to finished gradients, after the last one (and after their reduction over ranks)."""

    def add_gradients(self, step: int, /) -> None:
        """Add the penalty's gradient to the gradients, once an optimizer step; `step` counts from 0."""
        ...

    def value(self) -> float:
        """The penalty in nats when gradients were last added; the ranks' values add up to the whole."""
        ...

    def held_bytes(self) -> int:
        """Memory that it keeps between steps on this rank."""
        ...


def causal_predictions(model: Any, rows: Row) -> torch.Tensor:
    """Logits [n, V] of a causal language model at the places whose next token has a label."""
    logits = model(**{name: value for name, value in rows.items() if name != "labels"}).logits
    return logits[:, :-1][labelled(rows)]


def labelled(rows: Row) -> torch.Tensor:
    """bool [rows, L - 1]: places whose next token is learned."""
    found: torch.Tensor = rows["labels"][:, 1:] != -100
    return found


Group = Literal["all", "attention", "mlp"]
_COMPONENTS = {
    "attention": frozenset({"self_attn", "attention", "attn", "self_attention"}),
    "mlp": frozenset({"mlp", "feed_forward", "ffn", "block_sparse_moe"}),
}


def held_back(names: Iterable[str], group: Group, *, model_type: str = "") -> list[str]:
    """Those of the weights' names that belong to the group, in their order.

    Raises:
        InputError: none does.
    """
    names = list(names)
    wanted = _COMPONENTS.get(group)
    chosen = [name for name in names if wanted is None or wanted.intersection(name.split("."))]
    if not chosen:
        raise InputError(
            f"pretraining.regularization.ewc.parameters: {group} names no trained weight of a model of type "
            f"{model_type or 'unknown'}; write all"
        )
    return chosen
