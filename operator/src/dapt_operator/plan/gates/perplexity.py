"""The gate of general perplexity: on the half that judges, at most so much above the base model's."""

from __future__ import annotations

import math
from typing import Final, Literal

from dapt_contract.measure import Measure, SidePerplexity
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.verdict import Gate, GateFacts, Verdict

NAME: Final = "generalPerplexity"

Half = Literal["a", "b", "both"]
"""Half A of the held-out text ranks, half B judges."""


def loss_nats(side: SidePerplexity, half: Half) -> float:
    """Return the loss of a side's half, in nats a token."""
    if half == "both":
        return side.both.loss_nats
    return (side.a if half == "a" else side.b).loss_nats


def increase(base: SidePerplexity, measured: SidePerplexity, half: Half) -> float:
    """Return the perplexity over the base model's, minus 1; infinite when it overflows."""
    before, after = loss_nats(base, half), loss_nats(measured, half)
    if not math.isfinite(after):
        return math.inf
    return math.expm1(min(after - before, 700.0))  # above 709 expm1 overflows


def passes_on(spec: DomainAdaptationSpec, base: Measure, measured: Measure, half: Half) -> bool:
    """Whether one half alone would let the model pass."""
    return increase(base.general, measured.general, half) <= spec.gates.max_general_perplexity_increase


def sentence(name: str, rise: float, limit: float, half: Literal["a", "b"], *, passed: bool) -> str:
    """Return what one half says about a model, with the half, the number and the limit."""
    return (
        f"general perplexity of {name} on half {half.upper()} is {rise:+.1%} against the base model's,"
        f" {'within' if passed else 'over'} the limit of {limit:+.1%}"
    )


def judge(spec: DomainAdaptationSpec, facts: GateFacts) -> tuple[Verdict, ...]:
    """Return one verdict, on half B."""
    limit = spec.gates.max_general_perplexity_increase
    rise = increase(facts.base.general, facts.measured.general, "b")
    passed = rise <= limit
    return (
        Verdict(
            gate=NAME,
            passed=passed,
            reason="WithinLimit" if passed else "LimitExceeded",
            message=sentence(facts.name, rise, limit, "b", passed=passed),
            numbers={"increase": rise, "limit": limit},
        ),
    )


GATE: Final = Gate(NAME, "general perplexity", judge)
