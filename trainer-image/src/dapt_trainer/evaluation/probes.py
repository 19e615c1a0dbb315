"""Probes: what a model makes of the right answer against the others.

A probe's value is the probability of the right answer when the model must give one of the choices,
exp(l_right) / sum over choices of exp(l), with l the sum of the log-likelihoods of a choice's tokens after the prompt.
It moves before the order of the choices does, so that a small gain shows. A set's score is the mean over its probes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.layout import PROBES
from dapt_contract.stages.common import ProbeConfig
from dapt_trainer.evaluation.items import Item
from dapt_trainer.evaluation.questions import Question, read_questions
from dapt_trainer.evaluation.scoring import Advance

if TYPE_CHECKING:
    from dapt_trainer.evaluation.harness import SharedContextModel


def read_probes(work: Path, probe: ProbeConfig, *, limit: int | None) -> tuple[Question, ...]:
    """The probes of a set.

    Raises:
        InputError: as `read_questions`.
    """
    return read_questions(work / PROBES / f"{probe.name}.jsonl", "prompt", limit=limit)


def run_probes(
    model: SharedContextModel, name: str, questions: tuple[Question, ...], advance: Advance | None = None
) -> list[Item]:
    """The probability of each probe's right answer, in the set's order."""
    model.advance = advance
    requests = []
    for question in questions:
        for choice in question.choices:
            # A choice continues the prompt with a word of its own, unless one of them says how they join.
            joined = question.text[-1].isspace() or choice[0].isspace()
            answer = choice if joined else f" {choice}"
            requests.append(((question.text, answer), *model._encode_pair(question.text, answer)))
    results = iter(model._loglikelihood_tokens(requests))
    items = []
    for question in questions:
        likelihoods = [next(results)[0] for _ in question.choices]
        items.append(Item(task=name, id=question.id, value=probability(likelihoods, question.answer)))
    return items


def probability(log_likelihoods: list[float], answer: int) -> float:
    """exp(l_answer) / sum of exp(l), without overflow."""
    highest = max(log_likelihoods)
    return math.exp(log_likelihoods[answer] - highest) / math.fsum(
        math.exp(value - highest) for value in log_likelihoods
    )
