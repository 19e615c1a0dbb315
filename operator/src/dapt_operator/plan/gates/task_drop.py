"""Points lost on each general task and probe set: no more than the limit, beyond the paired standard error."""

from __future__ import annotations

import math

from dapt_contract.measure import Score
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.verdict import GateFacts, Verdict

GATE = "generalScoreDrop"


def judge(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[Verdict, ...]:
    """One verdict a general task or probe set, on half B of the items where there are halves."""
    limit = spec.gates.max_general_score_drop
    return tuple(_one(limit, facts.name, score) for score in facts.measured.of_side("general"))


def _one(limit: float, name: str, score: Score) -> Verdict:
    halves = score.difference_b is not None and score.difference_b_standard_error is not None
    difference = score.difference_b if halves else score.difference
    error = score.difference_b_standard_error if halves else score.difference_standard_error
    if difference is None or error is None:
        return Verdict(
            GATE, False, "NotMeasured", f"{score.name} of {name} was not compared with the base model's", {}
        )
    items = score.items // 2 if halves else score.items
    drop, noise = -100.0 * difference, 100.0 * error
    numbers = {"drop": drop, "standardError": noise, "limit": limit, "items": float(items)}
    told = (
        f"{score.name} of {name} lost {drop:.1f} points"
        if drop > 0
        else f"{score.name} of {name} lost nothing"
    )
    if drop <= limit:
        return Verdict(GATE, True, "WithinLimit", f"{told}, within the limit of {limit:.1f}", numbers)
    if drop - limit <= noise:
        # the error falls with the root of the number of items: noise x sqrt(items / needed) = drop - limit
        needed = math.ceil(items * (noise / (drop - limit)) ** 2)
        return Verdict(
            GATE,
            True,
            "WithinNoise",
            f"{told}, over the limit of {limit:.1f} but within noise (standard error {noise:.1f});"
            f" about {needed} items would settle it",
            numbers | {"itemsNeeded": float(needed)},
        )
    return Verdict(
        GATE,
        False,
        "LimitExceeded",
        f"{told} (standard error {noise:.1f}), over the limit of {limit:.1f}",
        numbers,
    )
