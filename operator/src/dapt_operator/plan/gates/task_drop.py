"""The gate of general tasks: points lost on each task and probe set, beyond the limit and the paired standard error."""

from __future__ import annotations

import math
from typing import Final

from dapt_contract.measure import Score
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.completeness import NOT_MEASURED, defect_of, missing_scores
from dapt_operator.plan.gates.verdict import Gate, GateFacts, Verdict

NAME: Final = "generalScoreDrop"
LEAST_EXCESS: Final = 1e-6
"""Points over the limit below which the number of items that would settle it is not worth telling apart."""


def judge(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[Verdict, ...]:
    """Return one verdict for each general task and probe set, on half B of the items where there are halves."""
    if not facts.is_evaluated:
        return ()
    limit = spec.gates.max_general_score_drop
    base = {score.name: score for score in facts.base.of_side("general")}
    return (
        *(Verdict(NAME, False, NOT_MEASURED, missing) for missing in missing_scores(spec, facts, "general")),
        *(
            _judge_score(limit, facts.name, base.get(score.name), score)
            for score in facts.measured.of_side("general")
        ),
    )


def _judge_score(limit: float, name: str, base: Score | None, score: Score) -> Verdict:
    defect = defect_of(name, base, score)
    has_halves = score.difference_b is not None and score.difference_b_standard_error is not None
    difference = score.difference_b if has_halves else score.difference
    error = score.difference_b_standard_error if has_halves else score.difference_standard_error
    if defect or difference is None or error is None:
        return Verdict(NAME, False, NOT_MEASURED, defect)
    items = score.items // 2 if has_halves else score.items
    drop, noise = -100.0 * difference, 100.0 * error
    numbers = {"drop": drop, "standardError": noise, "limit": limit, "items": float(items)}
    lost = f"{drop:.1f} points" if drop > 0 else "nothing"
    change = f"{score.name} of {name} lost {lost} {'on half B' if has_halves else 'on all items'}"
    if drop <= limit:
        return Verdict(NAME, True, "WithinLimit", f"{change}, within the limit of {limit:.1f}", numbers)
    if drop - limit <= noise:
        # The error falls with the root of the number of items: noise x sqrt(items / needed) = drop - limit.
        needed = math.ceil(items * (noise / max(drop - limit, LEAST_EXCESS)) ** 2)
        return Verdict(
            NAME,
            True,
            "WithinNoise",
            f"{change}, over the limit of {limit:.1f} but within noise (standard error {noise:.1f});"
            f" about {needed} items would settle it",
            numbers | {"itemsNeeded": float(needed)},
        )
    return Verdict(
        NAME,
        False,
        "LimitExceeded",
        f"{change} (standard error {noise:.1f}), over the limit of {limit:.1f}",
        numbers,
    )


GATE: Final = Gate(NAME, "general scores", judge)
