"""Chooses a candidate. Half A ranks, half B and the tasks judge; three are judged at most.

Each further candidate is another try, and with enough tries one that forgets too much passes by luck. So only the first
has the benefit of the doubt: after a failure, a task's loss over the limit counts even where it may be chance, and a
perplexity must keep its limit by more than chance explains.

Everything is decided from stored numbers, so an edited gate or weight decides again without a run, unless a candidate
comes first that was never evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dapt_contract.measure import Measure
from dapt_operator.api.v1alpha1.conditions import GATES_BREACHED, NO_GAIN, PIN_UNKNOWN
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.number_format import plural
from dapt_operator.plan.gates import minimal_gain, perplexity
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection.candidates import Candidate, candidates
from dapt_operator.plan.sizing.resolve import learning_rate
from dapt_operator.plan.stage_parts.attempts import find_attempt, first_replay
from dapt_operator.plan.stage_parts.weights import is_measurable

MAX_JUDGED: Final = 3
MAX_LISTED: Final = 20
"""Ids that a message lists."""


@dataclass(frozen=True)
class Selected:
    """The candidate that is taken."""

    candidate: Candidate
    reason: str
    passes: bool
    """False under onBreach: Warn, and for a pinned candidate, where a gate does not let it pass."""
    is_pinned: bool = False


@dataclass(frozen=True)
class NeedsMeasure:
    """The candidate that is evaluated next."""

    candidate: Candidate


@dataclass(frozen=True)
class Breached:
    """No candidate passes; user action is required, or a new attempt follows."""

    reason: str
    message: str
    best: Candidate | None
    why: str = ""
    """The message without its remedies."""
    learned_too_little: bool = False
    """Whether every candidate keeps the limit of forgetting, and the best ones gained, but not enough."""


Choice = Selected | NeedsMeasure | Breached


def choose(spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...] | None = None) -> Choice:
    """Return the candidate to take or to evaluate next, or why none passes.

    Args:
        spec: with gates and selection as they are now.
        facts: of all attempts.
        known: the candidates of these facts, where they were gathered already.
    """
    known = candidates(spec, facts) if known is None else known
    if spec.selection.pin is not None:
        return _pinned(spec, facts, spec.selection.pin, known)
    # 1. the best by half A, one after the other, until the gates on half B let one pass
    passing = _ranked(spec, [c for c in known if c.passes_a and not c.why_unmeasurable])
    judged: list[Candidate] = []
    for candidate in passing[:MAX_JUDGED]:
        judged.append(candidate)
        if has_scores(spec) and not candidate.is_evaluated:
            # What is known of it are perplexities: where those are in doubt, no evaluation removes it.
            if _fails_by_perplexity(candidate) or (len(judged) > 1 and candidate.doubt):
                continue
            return NeedsMeasure(candidate)
        if candidate.passes and (len(judged) == 1 or not candidate.doubt):
            return Selected(candidate, _reason(facts, len(passing), judged, known), passes=True)
    # 2. one whose evaluation failed: that is no fault of the model, so it is kept waiting until a user has corrected it
    failed = [c for c in known if c.passes_a and c.why_unmeasurable and c.id in facts.given_up]
    if failed and len(judged) < MAX_JUDGED:
        return NeedsMeasure(_ranked(spec, failed)[0])
    # 3. under onBreach: Warn the best all the same
    measurable = [c for c in known if not c.why_unmeasurable and math.isfinite(c.gain_a)]
    if spec.gates.on_breach == "Warn" and measurable and facts.base is not None:
        best = (judged or _ranked(spec, measurable))[0]
        if has_scores(spec) and not best.is_evaluated:
            return NeedsMeasure(best)
        why = best.first_breach or best.doubt or breach_on_a(spec, facts.base, best)
        return Selected(best, f"largest gain; it breaches a gate and onBreach is Warn: {why}", passes=False)
    return _breached(spec, facts, known, judged, len(passing))


def breach_on_a(spec: DomainAdaptationSpec, base: Measure, candidate: Candidate) -> str:
    """Return why a candidate is not even ranked."""
    unreadable = perplexity.unreadable_loss(candidate.id, base, candidate.measure, "general", "a")
    if unreadable:
        return unreadable
    rise = perplexity.increase(base.general, candidate.measure.general, "a")
    limit = spec.gates.max_general_perplexity_increase
    return perplexity.sentence(candidate.id, rise, limit, "a", passed=False)


def remedies(spec: DomainAdaptationSpec, facts: Facts, *, learned_too_little: bool = False) -> str:
    """Return the ways out of a breach, with the values that a new adaptation would change.

    A model that forgot too much and one that learned too little need opposite changes.
    """
    newest = find_attempt(spec, facts, facts.attempt)
    requested = spec.pretraining.optimizer.learning_rate
    rate = newest.learning_rate if newest else learning_rate(spec.pretraining.method, requested)
    replay = newest.replay_fraction if newest else first_replay(spec, facts)
    share = f" (it was {replay:g})" if replay is not None else ""
    if learned_too_little:
        changes = f"more tokens, a higher learningRate (it was {rate:g}) or less corpus.replayFraction{share}"
    else:
        changes = f"more corpus.replayFraction{share}, a lower learningRate (it was {rate:g}) or fewer tokens"
    return (
        "everything is kept: change gates or selection here to decide again from the stored numbers, or start a new"
        f" adaptation with {changes}"
    )


def _pinned(spec: DomainAdaptationSpec, facts: Facts, pin: str, known: tuple[Candidate, ...]) -> Choice:
    """Return the candidate that selection.pin names, whatever the gates say of it."""
    candidate = next((candidate for candidate in known if candidate.id == pin), None)
    if candidate is None or facts.base is None:
        ids = [candidate.id for candidate in known]
        listed = f"the candidates are {_listed(ids, MAX_LISTED)}" if ids else "there is no candidate"
        message = f"selection.pin is {pin}, and {listed}: name one of them, or remove the field"
        return Breached(PIN_UNKNOWN, message, None, why=message)
    if has_scores(spec) and not candidate.is_evaluated and not candidate.why_unmeasurable:
        return NeedsMeasure(candidate)
    reason = "chosen by hand (selection.pin)"
    breach = candidate.first_breach or (
        "" if candidate.passes_a else breach_on_a(spec, facts.base, candidate)
    )
    if candidate.why_unmeasurable:
        reason += f"; {candidate.why_unmeasurable}"
    if breach:
        reason += f"; it breaches a gate: {breach}"
    passes = not breach and not candidate.why_unmeasurable
    return Selected(candidate, reason, passes=passes, is_pinned=True)


def _ranked(spec: DomainAdaptationSpec, pool: Sequence[Candidate]) -> list[Candidate]:
    """Return the largest gain on half A first, all in one currency: with the tasks of all, or by perplexity alone.

    With the tasks where all were evaluated, but for those that no evaluation can measure: they come last. With `when:
    end` only the best are evaluated, one after the other, so perplexity alone ranks before and after.
    """
    measured = [candidate for candidate in pool if is_measurable(candidate.measure)]
    with_tasks = spec.evaluation.when != "end" and all(candidate.is_evaluated for candidate in measured)

    def key(candidate: Candidate) -> tuple[float, int, int, str]:
        value = candidate.full_gain_a if with_tasks else candidate.gain_a
        if with_tasks and not candidate.is_evaluated:
            value = -math.inf
        rank = -value if math.isfinite(value) else math.inf
        # Ties are broken down to the id, so that equal numbers always give the same choice.
        step = candidate.step if candidate.step is not None else 10**9
        return (rank, candidate.attempt, step, candidate.id)

    return sorted(pool, key=key)


def _fails_by_perplexity(candidate: Candidate) -> bool:
    """Whether stored perplexities alone fail it, so that no evaluation is spent on it."""
    return any(
        not verdict.passed
        and (verdict.gate == perplexity.NAME or verdict.reason in ("LimitMissed", perplexity.NOT_FINITE))
        for verdict in candidate.verdicts
    )


def _reason(facts: Facts, num_passing: int, judged: list[Candidate], known: tuple[Candidate, ...]) -> str:
    """Return why the last of `judged` is taken, and what was left out of the comparison."""
    ranked = f"{plural(num_passing, 'candidate')} within the perplexity limit on half A"
    unmeasurable = [candidate.id for candidate in known if candidate.passes_a and candidate.why_unmeasurable]
    left_out = ""
    if unmeasurable:
        left_out = f"; without {_listed(unmeasurable, MAX_JUDGED)}, whose evaluation gave no result"
    for number, message in facts.lost_blends.items():
        left_out += (
            f"; without the blends of attempt {number}, whose stage failed{f': {message}' if message else ''}"
        )
    if len(judged) == 1:
        return f"largest gain of {ranked}; it passes the gates on half B{left_out}"
    failed = " and ".join(
        f"{candidate.id}{' (within noise)' if candidate.passes else ''}" for candidate in judged[:-1]
    )
    return f"largest gain of {ranked} that passes the gates on half B, after {failed} failed there{left_out}"


def _doubt(candidate: Candidate) -> str:
    """Return why a candidate that passes as the first does not as a further try; empty where it does."""
    return f"{candidate.doubt}, which is forgiven the first candidate alone" if candidate.doubt else ""


def _listed(ids: Sequence[str], most: int) -> str:
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(ids[:most]) + more


def _breached(
    spec: DomainAdaptationSpec,
    facts: Facts,
    known: tuple[Candidate, ...],
    judged: list[Candidate],
    num_passing: int,
) -> Breached:
    shown = judged or _ranked(spec, known)[:MAX_JUDGED]
    if not shown or facts.base is None:
        message = facts.pretrain.message if facts.pretrain else ""
        why = f"pretraining ended without a checkpoint{f' ({message})' if message else ''}"
        return Breached(GATES_BREACHED, f"{why}; {remedies(spec, facts)}", None, why=why)
    breaches = [
        c.why_unmeasurable or c.first_breach or _doubt(c) or breach_on_a(spec, facts.base, c) for c in shown
    ]
    # The number that is judged is bounded: of the others it is not known whether they pass.
    is_part = num_passing > len(judged) > 0
    none = f"none of the best {len(judged)} of {num_passing} candidates" if is_part else "no candidate"
    why = f"{none} passes the gates: {'; '.join(breaches)}"
    reason = NO_GAIN if judged and all(_fails_by_gain_alone(c) for c in judged) else GATES_BREACHED
    # With a candidate over the limit, or one worse in the domain than the base model, the rate may be too high instead.
    keeps_limit = all(candidate.passes_a for candidate in known)
    too_little = reason == NO_GAIN and keeps_limit and all(candidate.gain_a >= 0 for candidate in judged)
    message = f"{why}; {remedies(spec, facts, learned_too_little=too_little)}"
    return Breached(reason, message, shown[0], why=why, learned_too_little=too_little)


def _fails_by_gain_alone(candidate: Candidate) -> bool:
    failed = {verdict.gate for verdict in candidate.verdicts if not verdict.passed}
    return failed == {minimal_gain.NAME}
