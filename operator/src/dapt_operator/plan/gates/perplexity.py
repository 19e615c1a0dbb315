"""General perplexity on the half that judges: at most so much above the base model's."""

from __future__ import annotations

import math

from dapt_contract.measure import Measure, SidePerplexity
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.verdict import GateFacts, Verdict

GATE = "generalPerplexity"


def increase(base: SidePerplexity, measured: SidePerplexity, half: str) -> float:
    """Perplexity over the base model's, minus 1, on half `a` or `b` or on `both`; infinite when it overflows."""
    before, after = getattr(base, half).loss_nats, getattr(measured, half).loss_nats
    if not math.isfinite(after):
        return math.inf
    return math.expm1(min(after - before, 700.0))


def passes_on(spec: DomainAdaptationSpec, base: Measure, measured: Measure, half: str) -> bool:
    """Whether one half alone would let the model pass."""
    return increase(base.general, measured.general, half) <= spec.gates.max_general_perplexity_increase


def judge(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[Verdict, ...]:
    """One verdict, on half B."""
    limit = spec.gates.max_general_perplexity_increase
    rise = increase(facts.base.general, facts.measured.general, "b")
    passed = rise <= limit
    told = f"general perplexity of {facts.name} is {rise:+.1%} against the base model's"
    return (
        Verdict(
            gate=GATE,
            passed=passed,
            reason="WithinLimit" if passed else "LimitExceeded",
            message=f"{told}, {'within' if passed else 'over'} the limit of {limit:+.1%}",
            numbers={"increase": rise, "limit": limit},
        ),
    )
