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

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

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
