"""Attempts of pretraining: the numbers of each, and what a rollback makes of the one before it.

The first attempt follows from the spec. A later one is written into the ledger when it is decided (`retreat`) and read
from there ever after, so that an edit of the gates never changes what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from dapt_contract.checkpoint import candidate_id
from dapt_contract.stages.pretrain import CheckpointFacts, MixturePhase
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.ledger import AttemptRecord, PhaseRecord
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.ledger.stage_facts import Facts, measure_of_row
from dapt_operator.plan.sizing.resolve import budget_steps, learning_rate, replay_fraction
from dapt_operator.plan.stages.weights import is_finite

LARGEST_REPLAY: Final = 0.5
"""A rollback never asks for more: the domain is what is to be learned."""
MAX_REASON: Final = 1024


@dataclass(frozen=True)
class Attempt:
    """The numbers of one pretraining that do not follow from the spec alone."""

    number: int
    learning_rate: float
    replay_fraction: float
    start: str | None = None
    """Candidate that it starts from; None: the base model."""
    phases: tuple[MixturePhase, ...] = ()
    """What was read on the way to that candidate, oldest first."""

    @property
    def steps_before(self) -> int:
        """Optimizer steps on the way to the start; the budget has so many fewer left."""
        return sum(phase.steps for phase in self.phases)


def attempt(spec: DomainAdaptationSpec, facts: Facts, number: int) -> Attempt | None:
    """One attempt by its number; None while its replay is not known."""
    if number > 1:
        known = facts.attempts[number - 2]
        phases = tuple(MixturePhase(steps=p.steps, replay_fraction=p.replay_fraction) for p in known.phases)
        return Attempt(number, known.learning_rate, known.replay_fraction, known.start, phases)
    replay = replay_fraction(spec, facts.base)
    if replay is None:
        return None
    return Attempt(
        1, learning_rate(spec.pretraining.method, spec.pretraining.optimizer.learning_rate), replay
    )


def total_steps(spec: DomainAdaptationSpec, facts: Facts, known: Attempt) -> int | None:
    """Optimizer steps of an attempt: what the budget has left after those on the way to its start; None before prepare
    has counted the tokens. The whole budget follows from the first attempt's replay."""
    first = attempt(spec, facts, 1)
    if facts.prepare is None or first is None:
        return None
    whole = budget_steps(
        spec,
        domain_tokens=facts.prepare.domain_tokens,
        replay=first.replay_fraction,
        sequence_length_tokens=facts.prepare.sequence_length_tokens,
    )
    return max(1, whole.total_steps - known.steps_before) if whole is not None else None


def next_attempt(
    spec: DomainAdaptationSpec,
    facts: Facts,
    *,
    failed: frozenset[str],
    reason: str,
    now: datetime,
) -> AttemptRecord | None:
    """The attempt that follows a breach under `onBreach: Rollback`; None when no rollback is left.

    It starts from the newest checkpoint whose general perplexity, on both halves as the stop rule reads it, is within
    the limit, that leaves steps to train and that no task gate has failed; else from the base model.

    Args:
        spec: with the gates as they are now.
        facts: of all attempts.
        failed: candidates that were evaluated and failed a gate.
        reason: why the newest attempt is given up, in one sentence.
        now: aware, UTC.
    """
    rules = spec.gates.rollback
    if spec.gates.on_breach != "Rollback" or len(facts.attempts) >= rules.max_rollbacks:
        return None
    last = attempt(spec, facts, facts.attempt)
    assert last is not None
    whole = total_steps(spec, facts, Attempt(1, 0.0, 0.0))
    assert whole is not None
    start, phases = _start(spec, facts, whole, failed)
    replay = last.replay_fraction
    if spec.corpus.general_use == "train":
        replay = max(replay, min(LARGEST_REPLAY, replay * rules.replay_factor))
    return AttemptRecord(
        number=facts.attempt + 1,
        learning_rate=float(f"{last.learning_rate * rules.learning_rate_factor:.6g}"),
        replay_fraction=round(replay, 6),
        start=start,
        phases=tuple(PhaseRecord(steps=p.steps, replay_fraction=p.replay_fraction) for p in phases),
        reason=reason[:MAX_REASON],
        time=timestamp(now),
    )


def rollback_sentence(new: AttemptRecord) -> str:
    """What a rollback does and why, in one sentence."""
    return (
        f"{new.reason}; attempt {new.number} starts from {new.start or 'the base model'} with learning rate"
        f" {new.learning_rate:g} and replay {new.replay_fraction:g}"
    )


def _start(
    spec: DomainAdaptationSpec, facts: Facts, whole_steps: int, failed: frozenset[str]
) -> tuple[str | None, tuple[MixturePhase, ...]]:
    """The checkpoint to start from and what was read on the way to it; None: the base model."""
    for number in range(facts.attempt, 0, -1):
        ended, known = facts.pretrains.get(number), attempt(spec, facts, number)
        if ended is None or known is None:
            continue
        for row in reversed(ended.checkpoints):
            name = candidate_id(number, row.step)
            leaves_steps = known.steps_before + row.step < whole_steps
            if leaves_steps and name not in failed and _within_limit(spec, facts, row):
                return name, (
                    *known.phases,
                    MixturePhase(steps=row.step, replay_fraction=known.replay_fraction),
                )
    return None, ()


def _within_limit(spec: DomainAdaptationSpec, facts: Facts, row: CheckpointFacts) -> bool:
    if facts.base is None or not is_finite(row):
        return False
    return perplexity.passes_on(spec, facts.base, measure_of_row(facts.base, row), "both")
