"""The gate of the domain: on the half that judges, perplexity falls as far as required and the gain is above zero."""

from __future__ import annotations

from typing import Final

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.completeness import NOT_MEASURED, defect_of, missing_scores
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.gates.perplexity import NOT_FINITE, increase, unreadable_loss
from dapt_operator.plan.gates.verdict import Gate, GateFacts, Verdict

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
    decrease = -increase(facts.base.domain, facts.measured.domain, "b")
    gained = gain(spec.selection.weights, facts.base, facts.measured, "b")
    numbers = {"decrease": decrease, "limit": required, "gain": gained}
    change = f"domain perplexity of {facts.name} on half B is {-decrease:+.1%} against the base model's"
    if decrease < required:
        message = f"{change}, and a decrease of at least {required:.1%} is required"
        return (Verdict(NAME, False, "LimitMissed", message, numbers),)
    if not gained > 0.0:
        message = f"{change} and the gain there is {gained:.3f}, not above zero"
        return (Verdict(NAME, False, "NoGain", message, numbers),)
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
