"""Whether a model's measure holds all that a verdict is about: no gate judges by fewer numbers than it names."""

from __future__ import annotations

import math
from typing import Final

from dapt_contract.measure import Score, Side
from dapt_contract.stages.common import probe_name
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.verdict import GateFacts

NOT_MEASURED: Final = "NotMeasured"
"""Reason of a verdict on what was not measured, or not completely."""


def expected_scores(spec: DomainAdaptationSpec, side: Side) -> tuple[str, ...]:
    """Return the names of the tasks and probe sets that the spec has on a side."""
    tasks = spec.evaluation.domain.tasks if side == "domain" else spec.evaluation.general.tasks
    probes = spec.evaluation.probes.domain if side == "domain" else spec.evaluation.probes.general
    return (*(task.name for task in tasks), *(probe_name(side, index) for index in range(len(probes))))


def missing_scores(spec: DomainAdaptationSpec, facts: GateFacts, side: Side) -> tuple[str, ...]:
    """Return one sentence for each task or probe set of a side that an evaluated model was not scored on.

    A task of the spec must be scored on both models, and so must what the base model was scored on besides.
    """
    base = {score.name for score in facts.base.of_side(side)}
    measured = {score.name for score in facts.measured.of_side(side)}
    expected = dict.fromkeys((*expected_scores(spec, side), *sorted(base)))
    return tuple(
        f"{name} was not measured on {facts.name if name in base else 'the base model'}"
        for name in expected
        if name not in base or name not in measured
    )


def defect_of(name: str, base: Score | None, score: Score) -> str:
    """Return why a score cannot be compared with the base model's; empty when it can.

    Args:
        name: of the model.
        base: the base model's score on the same task; None where it has none.
        score: the model's.
    """
    if base is None or score.difference is None or score.difference_standard_error is None:
        return f"{score.name} of {name} was not compared with the base model's"
    if score.items < 1 or score.items != base.items:
        return f"{score.name} of {name} has {score.items} items, and the base model's has {base.items}"
    # General tasks rank nothing and are judged whole.
    has_halves = score.side == "domain"
    halves = (score.difference_b, score.difference_b_standard_error) if has_halves else ()
    if base.score_a is not None and None in halves:
        return f"{score.name} of {name} was not compared with the base model's on half B"
    values = (score.score, score.difference, score.difference_standard_error, *halves, base.score)
    if not all(value is None or math.isfinite(value) for value in values):
        return f"{score.name} of {name} or of the base model is not a finite number"
    return ""
