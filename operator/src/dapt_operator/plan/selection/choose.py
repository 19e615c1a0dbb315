"""Which candidate is taken. Half A ranks, half B and the tasks judge; three are judged at most.

Everything is decided from stored numbers, so an edited gate or weight decides again without a run, unless a candidate
comes first that was never evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dapt_contract.measure import Measure
from dapt_operator.api.v1alpha1.conditions import GATES_BREACHED, NO_GAIN, PIN_UNKNOWN
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection.candidates import Candidate, candidates
from dapt_operator.plan.sizing.resolve import learning_rate, replay_fraction
from dapt_operator.plan.stages.attempts import attempt

MAX_JUDGED = 3
MAX_LISTED = 20
"""Ids that a sentence lists."""


@dataclass(frozen=True)
class Selected:
    """A decision."""

    candidate: Candidate
    reason: str
    passed: bool
    """False under onBreach: Warn, and for a candidate that a person pinned."""
    pinned: bool = False


@dataclass(frozen=True)
class NeedsMeasure:
    """The candidate that is evaluated next."""

    candidate: Candidate


@dataclass(frozen=True)
class Breached:
    """None passes; a person decides, or a new attempt follows."""

    reason: str
    message: str
    best: Candidate | None
    why: str = ""
    """The message without its remedies."""


Choice = Selected | NeedsMeasure | Breached


def choose(spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...] | None = None) -> Choice:
    """Take a candidate, ask for a measure, or say why none passes.

    Args:
        spec: with gates and selection as they are now.
        facts: of all attempts.
        known: the candidates of these facts, where they were made already.
    """
    known = candidates(spec, facts) if known is None else known
    if spec.selection.pin is not None:
        return _pinned(spec, facts, spec.selection.pin, known)
    passing = _ranked(spec, [c for c in known if c.passes_a and not c.lost])
    judged: list[Candidate] = []
    for candidate in passing[:MAX_JUDGED]:
        judged.append(candidate)
        if has_scores(spec) and not candidate.evaluated:
            if fails_already(candidate):
                continue
            return NeedsMeasure(candidate)
        if candidate.passes:
            return Selected(candidate, _reason(facts, len(passing), judged, known), passed=True)
    lost = _ranked(spec, [c for c in known if c.passes_a and c.lost and c.id in facts.given_up])
    if (
        lost and len(judged) < MAX_JUDGED
    ):  # a fault of the evaluation is none of the model: a person looks at it
        return NeedsMeasure(lost[0])
    measurable = [c for c in known if not c.lost and math.isfinite(c.gain_a)]
    if spec.gates.on_breach == "Warn" and measurable:
        best = (judged or _ranked(spec, measurable))[0]
        if has_scores(spec) and not best.evaluated:
            return NeedsMeasure(best)
        why = best.first_breach or "its general perplexity on the half that ranks is over the limit"
        return Selected(best, f"largest gain; it breaches a gate and onBreach is Warn: {why}", passed=False)
    return _breached(spec, facts, known, judged)


def _pinned(spec: DomainAdaptationSpec, facts: Facts, pin: str, known: tuple[Candidate, ...]) -> Choice:
    found = next((candidate for candidate in known if candidate.id == pin), None)
    if found is None:
        ids = [candidate.id for candidate in known]
        more = f" and {len(ids) - MAX_LISTED} more" if len(ids) > MAX_LISTED else ""
        there = f"the candidates are {', '.join(ids[:MAX_LISTED])}{more}" if ids else "there is no candidate"
        message = f"selection.pin is {pin}, and {there}: name one of them, or remove the field"
        return Breached(PIN_UNKNOWN, message, None, why=message)
    if has_scores(spec) and not found.evaluated and not found.lost:
        return NeedsMeasure(found)
    assert facts.base is not None
    said = "chosen by hand (selection.pin)"
    breach = found.first_breach or ("" if found.passes_a else breach_on_a(spec, facts.base, found))
    if found.lost:
        said += f"; {found.lost}"
    if breach:
        said += f"; it breaches a gate: {breach}"
    return Selected(found, said, passed=not breach and not found.lost, pinned=True)


def _ranked(spec: DomainAdaptationSpec, pool: Sequence[Candidate]) -> list[Candidate]:
    """Largest gain on half A first: with the tasks where all were evaluated, else by perplexity alone."""
    whole = spec.evaluation.when != "end" and all(candidate.evaluated for candidate in pool)

    def key(candidate: Candidate) -> tuple[float, int, int, str]:
        value = candidate.full_gain_a if whole else candidate.gain_a
        rank = -value if math.isfinite(value) else math.inf
        step = candidate.step if candidate.step is not None else 10**9
        return (rank, candidate.attempt, step, candidate.id)

    return sorted(pool, key=key)


def fails_already(candidate: Candidate) -> bool:
    """Whether stored perplexities alone fail it, so that no evaluation is spent on it."""
    return any(
        not verdict.passed and (verdict.gate == perplexity.GATE or verdict.reason == "LimitMissed")
        for verdict in candidate.verdicts
    )


def _reason(facts: Facts, passing: int, judged: list[Candidate], known: tuple[Candidate, ...]) -> str:
    many = "candidate that passes" if passing == 1 else "candidates that pass"
    without = [candidate.id for candidate in known if candidate.passes_a and candidate.lost]
    left_out = f"; without {_listed(without)}, whose evaluation gave no result" if without else ""
    for number, said in facts.lost_blends.items():
        left_out += (
            f"; without the blends of attempt {number}, whose stage failed{f': {said}' if said else ''}"
        )
    if len(judged) == 1:
        return f"largest gain of {passing} {many} the gates{left_out}"
    failed = " and ".join(earlier.id for earlier in judged[:-1])
    return (
        f"largest gain of {passing} {many} the perplexity gate, after {failed} failed on the half that judges"
        f"{left_out}"
    )


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MAX_JUDGED} more" if len(ids) > MAX_JUDGED else ""
    return ", ".join(ids[:MAX_JUDGED]) + more


def _breached(
    spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...], judged: list[Candidate]
) -> Breached:
    shown = judged or _ranked(spec, known)[:MAX_JUDGED]
    if not shown:
        ended = facts.pretrain.message if facts.pretrain else ""
        why = f"pretraining ended without a checkpoint{f' ({ended})' if ended else ''}"
        return Breached(GATES_BREACHED, f"{why}; {remedies(spec, facts)}", None, why=why)
    assert facts.base is not None
    base = facts.base
    told = "; ".join(c.lost or c.first_breach or breach_on_a(spec, base, c) for c in shown)
    only_gain = all(
        not c.passes and all(v.passed or v.gate == "domainGain" for v in c.verdicts) for c in judged
    ) and bool(judged)
    why = f"no candidate passes the gates: {told}"
    return Breached(
        NO_GAIN if only_gain else GATES_BREACHED, f"{why}; {remedies(spec, facts)}", shown[0], why=why
    )


def breach_on_a(spec: DomainAdaptationSpec, base: Measure, candidate: Candidate) -> str:
    """Why a candidate is not even ranked."""
    rise = perplexity.increase(base.general, candidate.measure.general, "a")
    limit = spec.gates.max_general_perplexity_increase
    return f"general perplexity of {candidate.id} is {rise:+.1%} on the half that ranks, over the limit of {limit:+.1%}"


def remedies(spec: DomainAdaptationSpec, facts: Facts) -> str:
    """The three ways out, and the fourth that costs nothing."""
    newest = attempt(spec, facts, facts.attempt)
    asked = spec.pretraining.optimizer.learning_rate
    rate = newest.learning_rate if newest else learning_rate(spec.pretraining.method, asked)
    replay = newest.replay_fraction if newest else replay_fraction(spec, facts.base)
    share = f" (it was {replay:g})" if replay is not None else ""
    return (
        f"everything is kept: change gates or selection here to decide again from the stored numbers, or start a new"
        f" adaptation with more corpus.replayFraction{share}, a lower learningRate (it was {rate:g}) or fewer tokens"
    )
