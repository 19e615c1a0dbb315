"""The gate of the domain: on the half that judges, perplexity falls as far as required and the gain is above zero."""

from __future__ import annotations

from typing import Final

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.gates.perplexity import increase
from dapt_operator.plan.gates.verdict import Gate, GateFacts, Verdict

NAME: Final = "domainGain"


def judge(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[Verdict, ...]:
    """Return one verdict, on half B."""
    required = spec.gates.min_domain_perplexity_decrease
    decrease = -increase(facts.base.domain, facts.measured.domain, "b")
    gained = gain(spec.selection.weights, facts.base, facts.measured, "b")
    numbers = {"decrease": decrease, "limit": required, "gain": gained}
    change = f"domain perplexity of {facts.name} on half B is {-decrease:+.1%} against the base model's"
    if decrease < required:
        message = f"{change}, and a decrease of at least {required:.1%} is required"
        return (Verdict(NAME, False, "LimitMissed", message, numbers),)
    if gained <= 0.0:
        message = f"{change} and the gain there is {gained:.3f}, not above zero"
        return (Verdict(NAME, False, "NoGain", message, numbers),)
    return (Verdict(NAME, True, "Gained", f"{change}, a gain of {gained:.3f}", numbers),)


GATE: Final = Gate(NAME, "domain gain", judge)
