"""The gate of general perplexity: on the half that judges, at most so much above the base model's.

The reading itself judges, and the verdict says where chance may have decided it. `gates.confidence` turns the burden of
proof: the rise must lie within the limit with that confidence. Where no standard error is known (results of before it
was computed), the reading judges alone.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from dapt_contract.measure import Measure, Side, SidePerplexity
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.noise import Margin, error_of_ratio, margin_of
from dapt_operator.plan.gates.verdict import WITHIN_NOISE, Gate, GateFacts, Verdict

NAME: Final = "generalPerplexity"
NOT_FINITE: Final = "NotFinite"
"""Reason of a verdict on a number that is infinite or none."""

Half = Literal["a", "b", "both"]
"""Half A of the held-out text ranks, half B judges."""


def loss_nats(side: SidePerplexity, half: Half) -> float:
    """Return the loss of a side's half, in nats a token."""
    if half == "both":
        return side.both.loss_nats
    return (side.a if half == "a" else side.b).loss_nats


def increase(base: SidePerplexity, measured: SidePerplexity, half: Half) -> float:
    """Return the perplexity over the base model's, minus 1; infinite when one of the two is not a finite number."""
    before, after = loss_nats(base, half), loss_nats(measured, half)
    # Of both: against an infinite base model every model would have improved by 100 %.
    if not (math.isfinite(before) and math.isfinite(after)):
        return math.inf
    return math.expm1(min(after - before, 700.0))  # above 709 expm1 overflows


def unreadable_loss(name: str, base: Measure, measured: Measure, side: Side, half: Half) -> str:
    """Return which of two models has a loss that is not a finite number; empty when neither has.

    Args:
        name: of the measured model.
        base: the base model's measure.
        measured: the model's.
        side: of the held-out text.
        half: of it.
    """
    for model, measure in (("the base model", base), (name, measured)):
        of_side = measure.domain if side == "domain" else measure.general
        if not math.isfinite(loss_nats(of_side, half)):
            return f"{side} perplexity of {model} on half {half.upper()} is not a finite number"
    return ""


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
    unreadable = unreadable_loss(facts.name, facts.base, facts.measured, "general", "b")
    if unreadable:
        return (Verdict(NAME, False, NOT_FINITE, unreadable, {"limit": limit}),)
    base, measured = facts.base.general, facts.measured.general
    rise = increase(base, measured, "b")
    margin = margin_of("general", base, measured, math.log1p(limit), spec.gates.confidence)
    numbers = {"increase": rise, "limit": limit}
    if margin is None:
        passed = rise <= limit
        message = sentence(facts.name, rise, limit, "b", passed=passed)
        return (Verdict(NAME, passed, _reason(passed), message, numbers),)
    error = error_of_ratio(base, measured) or 0.0
    change = (
        f"general perplexity of {facts.name} on half B is {rise:+.1%} ± {error:.1%} against the base model's"
    )
    numbers |= {"standardError": error}
    if spec.gates.confidence is not None:
        return (_judge_bound(change, margin, numbers, spec.gates.confidence),)
    passed = rise <= limit
    message = f"{change}, {'within' if passed else 'over'} the limit of {limit:+.1%}"
    if not margin.is_noise:
        return (Verdict(NAME, passed, _reason(passed), message, numbers),)
    message += f" but within noise; {margin.remedy}"
    reason = WITHIN_NOISE if passed else _reason(passed)
    return (Verdict(NAME, passed, reason, message, numbers | margin.numbers()),)


def _judge_bound(change: str, margin: Margin, numbers: dict[str, float], confidence: float) -> Verdict:
    """Judge by the upper bound of the rise."""
    limit = numbers["limit"]
    bound = math.expm1(min(math.log1p(limit) - margin.nats + margin.noise_nats, 700.0))
    said = f"{change}, at most {bound:+.1%} with {confidence:.0%} confidence"
    numbers = numbers | {"bound": bound}
    if margin.is_kept:
        return Verdict(NAME, True, _reason(True), f"{said}, within the limit of {limit:+.1%}", numbers)
    if margin.nats > 0:
        said += f" ({margin.remedy})"
        numbers |= margin.numbers()
    return Verdict(NAME, False, _reason(False), f"{said}, over the limit of {limit:+.1%}", numbers)


def _reason(passed: bool) -> str:
    return "WithinLimit" if passed else "LimitExceeded"


GATE: Final = Gate(NAME, "general perplexity", judge)
