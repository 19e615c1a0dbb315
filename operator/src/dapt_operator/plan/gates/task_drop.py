"""The gate of general tasks: a task fails when its drop is over the limit, and real.

Every model loses points on some task by chance. A drop is real when so large a one would be seen in fewer than one of
twenty adaptations that lose nothing on any task: the paired test of each task is corrected for their number
(Bonferroni), so that many tasks fail a harmless model no oftener than one task does. General tasks rank nothing, so all
of their items judge. `gates.confidence` turns the burden of proof: a task passes when the drop is within the limit with
that confidence. docs/evaluation.md has the chances of passing.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from dapt_contract.measure import Score
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.completeness import NOT_MEASURED, defect_of, missing_scores
from dapt_operator.plan.gates.verdict import WITHIN_NOISE, Gate, GateFacts, Verdict
from dapt_operator.significance import errors_that_are_real

NAME: Final = "generalScoreDrop"
LEAST_DROP: Final = 1e-6
"""Points below which the number of items that would settle a drop is not worth telling apart."""


def judge(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[Verdict, ...]:
    """Return one verdict for each general task and probe set, on all items."""
    if not facts.is_evaluated:
        return ()
    base = {score.name: score for score in facts.base.of_side("general")}
    measured = facts.measured.of_side("general")
    return (
        *(Verdict(NAME, False, NOT_MEASURED, missing) for missing in missing_scores(spec, facts, "general")),
        *(_judge_score(spec, facts.name, base.get(score.name), score, len(measured)) for score in measured),
    )


def _judge_score(
    spec: DomainAdaptationSpec, name: str, base: Score | None, score: Score, num_tasks: int
) -> Verdict:
    defect = defect_of(name, base, score)
    if defect or score.difference is None or score.difference_standard_error is None:
        return Verdict(NAME, False, NOT_MEASURED, defect)
    limit, confidence = spec.gates.max_general_score_drop, spec.gates.confidence
    drop, error = -100.0 * score.difference, 100.0 * score.difference_standard_error
    numbers = {"drop": drop, "standardError": error, "limit": limit, "items": float(score.items)}
    lost = f"{drop:.1f} points" if drop > 0 else "nothing"
    change = f"{score.name} of {name} lost {lost} on {score.items} items"
    if confidence is not None:
        return _judge_bound(change, numbers, confidence)
    if drop <= limit:
        return Verdict(NAME, True, "WithinLimit", f"{change}, within the limit of {limit:.1f}", numbers)
    noise = errors_that_are_real(num_tasks) * error
    if drop <= noise:
        needed = _items_needed(score.items, noise / max(drop, LEAST_DROP))
        return Verdict(
            NAME,
            True,
            WITHIN_NOISE,
            f"{change}, over the limit of {limit:.1f} but within noise (chance explains {noise:.1f});"
            f" about {needed} items would settle it",
            numbers | {"noise": noise, "itemsNeeded": float(needed)},
        )
    message = f"{change} (chance explains {noise:.1f}), over the limit of {limit:.1f}"
    return Verdict(NAME, False, "LimitExceeded", message, numbers | {"noise": noise})


def _judge_bound(change: str, numbers: dict[str, float], confidence: float) -> Verdict:
    """Judge by the upper bound of the drop. No correction: all bounds must be within the limit."""
    drop, error, limit = numbers["drop"], numbers["standardError"], numbers["limit"]
    margin = NormalDist().inv_cdf(confidence) * error
    bound = drop + margin
    numbers = numbers | {"bound": bound}
    said = f"{change}, at most {max(bound, 0.0):.1f} with {confidence:.0%} confidence"
    if bound <= limit:
        return Verdict(NAME, True, "WithinLimit", f"{said}, within the limit of {limit:.1f}", numbers)
    room = limit - drop
    if room > LEAST_DROP:
        needed = _items_needed(int(numbers["items"]), margin / room)
        said += f" (about {needed} items would settle it)"
    return Verdict(NAME, False, "LimitExceeded", f"{said}, over the limit of {limit:.1f}", numbers)


def _items_needed(items: int, ratio: float) -> int:
    """Return the items with which an error is `ratio` times as small: it falls with the root of their number."""
    return math.ceil(items * min(ratio, 1e6) ** 2)


GATE: Final = Gate(NAME, "general scores", judge)
