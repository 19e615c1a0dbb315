"""The domain on the half that judges: perplexity must fall as far as asked, and the gain must be above zero."""

from __future__ import annotations

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.gates.perplexity import increase
from dapt_operator.plan.gates.verdict import GateFacts, Verdict

GATE = "domainGain"


def judge(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[Verdict, ...]:
    """One verdict, on half B."""
    least = spec.gates.min_domain_perplexity_decrease
    decrease = -increase(facts.base.domain, facts.measured.domain, "b")
    won = gain(spec.selection.weights, facts.base, facts.measured, "b")
    numbers = {"decrease": decrease, "limit": least, "gain": won}
    told = f"domain perplexity of {facts.name} is {-decrease:+.1%} against the base model's"
    if decrease < least:
        message = f"{told}, and a decrease of at least {least:.1%} is asked for"
        return (Verdict(GATE, False, "LimitMissed", message, numbers),)
    if won <= 0.0:
        message = f"{told} and the gain on the half that judges is {won:.3f}, not above zero"
        return (Verdict(GATE, False, "NoGain", message, numbers),)
    return (Verdict(GATE, True, "Gained", f"{told}, a gain of {won:.3f}", numbers),)
