"""Scores probes by log-likelihoods: of the right answer against the others, or of continuations in an order.

The value of a probe that chooses is the probability of the right answer when the model must give one of the choices,
exp(l_right) / sum over choices of exp(l), with l the sum of the log-likelihoods of a choice's tokens after the prompt.
It changes before the order of the choices does, so that it shows a small gain.

The value of a probe that orders is the share of pairs of its continuations that l puts in the right order; a tie counts
half. It is (tau + 1) / 2 with Kendall's tau (Kendall 1938, "A New Measure of Rank Correlation"): 1 the right order, 0
the reverse, 0.5 chance. A set's score is the mean over its probes of both kinds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.layout import PROBES
from dapt_contract.stages.common import ProbeConfig
from dapt_trainer.evaluation.custom_tasks import Ordering, Question, read_probe_lines
from dapt_trainer.evaluation.items import Item
from dapt_trainer.evaluation.scoring import Advance

if TYPE_CHECKING:
    from dapt_trainer.evaluation.harness import SharedContextModel


def read_probes(work: Path, probe: ProbeConfig, *, limit: int | None) -> tuple[Question | Ordering, ...]:
    """Read the probes of a set.

    Raises:
        InputError: as `read_probe_lines`.
    """
    return read_probe_lines(work / PROBES / f"{probe.name}.jsonl", limit=limit)


def run_probes(
    model: SharedContextModel,
    name: str,
    probes: Sequence[Question | Ordering],
    advance: Advance | None = None,
) -> list[Item]:
    """Return the value of each probe, in the set's order."""
    model.advance = advance
    requests = []
    for probe in probes:
        for continuation in _continuations(probe):
            # A continuation begins with a word of its own, unless the texts already have the space between them.
            has_space = probe.text[-1].isspace() or continuation[0].isspace()
            answer = continuation if has_space else f" {continuation}"
            requests.append(((probe.text, answer), *model._encode_pair(probe.text, answer)))
    results = iter(model._loglikelihood_tokens(requests))
    items = []
    for probe in probes:
        likelihoods = [next(results)[0] for _ in _continuations(probe)]
        items.append(Item(task=name, id=probe.id, value=_value(probe, likelihoods)))
    return items


def _value(probe: Question | Ordering, log_likelihoods: list[float]) -> float:
    if isinstance(probe, Ordering):
        return order_share(log_likelihoods)
    return probability(log_likelihoods, probe.answer)


def order_share(log_likelihoods: Sequence[float]) -> float:
    """Return the share of pairs whose earlier member is the likelier; ties count half."""
    pairs = list(itertools.combinations(log_likelihoods, 2))
    return sum(0.5 if first == second else float(first > second) for first, second in pairs) / len(pairs)


def _continuations(probe: Question | Ordering) -> tuple[str, ...]:
    return probe.choices if isinstance(probe, Question) else probe.order


def probability(log_likelihoods: list[float], answer: int) -> float:
    """Return exp(l_answer) / sum of exp(l), computed without overflow."""
    highest = max(log_likelihoods)
    return math.exp(log_likelihoods[answer] - highest) / math.fsum(
        math.exp(value - highest) for value in log_likelihoods
    )
