"""The gate of the domain: on the half that judges, perplexity falls as far as required and the gain is above zero.

Chance and `gates.confidence` count as in the gate of general perplexity.
"""

from __future__ import annotations

import math
from typing import Final

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.completeness import NOT_MEASURED, defect_of, missing_scores
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.gates.noise import error_of_ratio, margin_of
from dapt_operator.plan.gates.perplexity import NOT_FINITE, increase, unreadable_loss
from dapt_operator.plan.gates.verdict import WITHIN_NOISE, Gate, GateFacts, Verdict

NAME: Final = "domainGain"


def judge(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[Verdict, ...]:
    """Return one verdict, on half B."""
    unreadable = unreadable_loss(facts.name, facts.base, facts.measured, "domain", "b")
    if unreadable:
        return (Verdict(NAME, False, NOT_FINITE, unreadable),)
    incomplete = _incomplete(spec, facts)
    if incomplete:
        return (Verdict(NAME, False, NOT_MEASURED, "; ".join(incomplete)),)
    required = spec.gates.min_domain_perplexity_decrease
    base, measured = facts.base.domain, facts.measured.domain
    decrease = -increase(base, measured, "b")
    gained = gain(spec.selection.weights, facts.base, facts.measured, "b")
    numbers = {"decrease": decrease, "limit": required, "gain": gained}
    margin = margin_of("domain", base, measured, math.log1p(-required), spec.gates.confidence)
    error = error_of_ratio(base, measured)
    shown = f"{-decrease:+.1%}" if error is None else f"{-decrease:+.1%} ± {error:.1%}"
    if error is not None:
        numbers["standardError"] = error
    change = f"domain perplexity of {facts.name} on half B is {shown} against the base model's"
    asked = f"a decrease of at least {required:.1%} is required"
    if decrease < required:
        noise = f" (within noise; {margin.remedy})" if margin is not None and margin.is_noise else ""
        return (Verdict(NAME, False, "LimitMissed", f"{change}, and {asked}{noise}", numbers),)
    confidence = spec.gates.confidence
    if margin is not None and confidence is not None and not margin.is_kept:
        bound = -math.expm1(math.log1p(-required) - margin.nats + margin.noise_nats)
        change += f", with {confidence:.0%} confidence a decrease of {bound:.1%} at least ({margin.remedy})"
        numbers |= margin.numbers() | {"bound": bound}
        return (Verdict(NAME, False, "LimitMissed", f"{change}, and {asked}", numbers),)
    if not gained > 0.0:
        message = f"{change} and the gain there is {gained:.3f}, not above zero"
        return (Verdict(NAME, False, "NoGain", message, numbers),)
    if margin is not None and confidence is None and margin.is_noise:
        message = f"{change}, a gain of {gained:.3f} but within noise of the required {required:.1%}; {margin.remedy}"
        return (Verdict(NAME, True, WITHIN_NOISE, message, numbers | margin.numbers()),)
    return (Verdict(NAME, True, "Gained", f"{change}, a gain of {gained:.3f}", numbers),)


def _incomplete(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[str, ...]:
    """Return what is missing of the domain tasks that the gain is the mean of; nothing where they do not count."""
    if not facts.is_evaluated or spec.selection.weights.domain_tasks <= 0:
        return ()
    base = {score.name: score for score in facts.base.of_side("domain")}
    defects = (
        defect_of(facts.name, base.get(score.name), score) for score in facts.measured.of_side("domain")
    )
    return (*missing_scores(spec, facts, "domain"), *(defect for defect in defects if defect))


GATE: Final = Gate(NAME, "domain gain", judge)
