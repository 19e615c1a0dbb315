"""What follows when an attempt has ended: another attempt, evaluations to wait for, a choice, or a breach.

Pure over stored numbers, so that the walk and a replay of recorded reports decide alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dapt_operator.api.v1alpha1.conditions import PIN_UNKNOWN
from dapt_operator.api.v1alpha1.ledger import AttemptRecord
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection import candidates
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.selection.choose import Breached, Choice, NeedsMeasure, choose
from dapt_operator.plan.stages import attempts


@dataclass(frozen=True)
class AttemptDecision:
    """What is decided once no attempt runs and all blends are measured."""

    choice: Choice
    waiting: tuple[Candidate, ...] = ()
    """Candidates that are to be evaluated first."""
    retreat: AttemptRecord | None = None
    """The attempt that follows."""


def after_limit(
    spec: DomainAdaptationSpec,
    facts: Facts,
    known: tuple[Candidate, ...],
    *,
    diverged: bool,
    said: str,
    now: datetime,
) -> AttemptRecord | None:
    """The attempt that follows one which was stopped; None where none is left, or a person pinned a candidate of it.

    Args:
        spec: with the gates as they are now.
        facts: of all attempts.
        known: their candidates.
        diverged: whether the loss was no number, else it was the forgetting limit.
        said: why, in the trainer's words.
        now: aware, UTC.
    """
    if any(candidate.id == spec.selection.pin for candidate in known):
        return None
    ended = "diverged" if diverged else "was stopped at the forgetting limit"
    return _retreat(spec, facts, known, f"attempt {facts.attempt} {ended}{f': {said}' if said else ''}", now)


def decide_after_attempt(
    spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...], now: datetime
) -> AttemptDecision:
    """Choose among the candidates of all attempts.

    Only evaluations of candidates that pass the perplexity gate on half A can change a choice: where none of those is
    left and nothing passes, another attempt follows at once, and the other evaluations go on beside it.

    Args:
        spec: with gates and selection as they are now.
        facts: of all attempts.
        known: their candidates.
        now: aware, UTC.
    """
    choice = choose(spec, facts, known)
    waiting = () if spec.selection.pin is not None else candidates.due(spec, known)
    decides = tuple(candidate for candidate in waiting if candidate.passes_a)
    if isinstance(choice, Breached):
        if not decides and choice.reason != PIN_UNKNOWN and not _is_out_of_budget(facts):
            retreat = _retreat(spec, facts, known, f"attempt {facts.attempt} ended and {choice.why}", now)
            if retreat is not None:
                return AttemptDecision(choice, retreat=retreat)
        return (
            AttemptDecision(NeedsMeasure((decides or waiting)[0]), waiting)
            if waiting
            else AttemptDecision(choice)
        )
    if waiting:
        return AttemptDecision(NeedsMeasure(choice.candidate), waiting)
    return AttemptDecision(choice, (choice.candidate,) if isinstance(choice, NeedsMeasure) else ())


def _is_out_of_budget(facts: Facts) -> bool:
    """Whether the newest attempt ended because pretraining's share of the GPU-hours was used up: none is left for
    another."""
    return facts.pretrain is not None and facts.pretrain.ended_by == "BudgetReached"


def _retreat(
    spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...], reason: str, now: datetime
) -> AttemptRecord | None:
    failed = frozenset(one.id for one in known if one.evaluated and not one.passes)
    return attempts.next_attempt(spec, facts, failed=failed, reason=reason, now=now)
