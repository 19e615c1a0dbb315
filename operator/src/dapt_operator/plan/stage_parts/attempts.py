"""Attempts of pretraining: the numbers of each, and the attempt with which a rollback follows the newest.

The first attempt follows from the spec and, where that leaves the replay open, from the measured shift: that share is
written into the ledger before the attempt starts (`replay_to_store`). A later attempt is written there when it is
decided (`next_attempt`). Both are read from the ledger ever after, so that no edit of the gates and no other version of
the operator changes what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from dapt_contract.checkpoint import candidate_id
from dapt_contract.measure import Measure
from dapt_contract.sentences import shortened
from dapt_contract.stages.pretrain import CheckpointFacts, MixturePhase
from dapt_operator.api.v1alpha1.base import MAX_TEXT
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord, Ledger, PhaseRecord
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.ledger.stage_facts import Facts, measure_of_row, read_facts
from dapt_operator.plan.sizing.resolve import (
    counted_steps,
    earlier_replay_by_shift,
    learning_rate,
    replay_by_shift,
    requested_replay,
    shift_nats,
)
from dapt_operator.plan.stage_parts.weights import is_finite
from dapt_operator.remembered import remembered

_CACHED_LEDGERS: Final = 16
LARGEST_REPLAY: Final = 0.5
"""A rollback never asks for more: the domain is what is to be learned."""


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
        """Return the optimizer steps on the way to the start; they are subtracted from the budget."""
        return sum(phase.steps for phase in self.phases)


def find_attempt(spec: DomainAdaptationSpec, facts: Facts, number: int) -> Attempt | None:
    """Return one attempt by its number; None while the first attempt's replay is not known."""
    if number > 1:
        return _recorded(facts.attempts[number - 2])
    replay = first_replay(spec, facts)
    return None if replay is None else _first(spec, replay)


def first_replay(spec: DomainAdaptationSpec, facts: Facts) -> float | None:
    """Return the first attempt's share of general tokens; None while the shift that chooses it is not measured."""
    return requested_replay(spec) if facts.base is None else _measured_replay(spec, facts, facts.base)


def replay_to_store(spec: DomainAdaptationSpec, facts: Facts) -> float | None:
    """Return the share that must be in the ledger before the first attempt starts; None when nothing is to be stored.

    What an earlier version has started trains by the line of that version, which needs no storing.
    """
    is_settled = facts.replay_fraction is not None or facts.has_started_pretraining
    if is_settled or facts.base is None or requested_replay(spec) is not None:
        return None
    return _replay_of_shift(facts, facts.base)


def possible_replays(spec: DomainAdaptationSpec, ledger: Ledger) -> tuple[float, ...]:
    """Return the shares that an unknown run of pretraining may train with; none where its share is known.

    The share is stored before the run is created. So the status was lost or put back, or an earlier version created
    the run and was stopped before it wrote the status.
    """
    base = read_facts(ledger).base
    if base is None or ledger.replay_fraction is not None or requested_replay(spec) is not None:
        return ()
    shift = shift_nats(base)
    return tuple(dict.fromkeys((replay_by_shift(shift), earlier_replay_by_shift(shift))))


# One object from one reconcile to the next, so that what is resolved for it is too.
@remembered(_CACHED_LEDGERS)
def measured_attempt(spec: DomainAdaptationSpec, facts: Facts, base: Measure, number: int) -> Attempt:
    """Return one attempt by its number, once the base model was measured."""
    if number > 1:
        return _recorded(facts.attempts[number - 2])
    return _first(spec, _measured_replay(spec, facts, base))


def total_steps(spec: DomainAdaptationSpec, facts: Facts, attempt: Attempt) -> int | None:
    """Return the optimizer steps of an attempt: what the budget has left after those on the way to its start.

    None before prepare has counted the tokens and baseline has measured the shift.
    """
    budget = _budget_steps(spec, facts)
    return None if budget is None else max(1, budget - attempt.steps_before)


def next_attempt(
    spec: DomainAdaptationSpec,
    facts: Facts,
    *,
    failed: frozenset[str],
    reason: str,
    now: datetime,
) -> AttemptRecord | None:
    """Return the attempt that follows a breach under `onBreach: Rollback`; None when no rollback is left.

    It starts from the newest checkpoint whose general perplexity, on both halves as the stop rule reads it, is within
    the limit, that leaves steps to train and that no task gate has failed; else from the base model.

    Args:
        spec: with the gates as they are now.
        facts: of all attempts.
        failed: candidates that were evaluated and failed a gate.
        reason: why the newest attempt is given up, in one sentence.
        now: aware, UTC.
    """
    rollback = spec.gates.rollback
    if spec.gates.on_breach != "Rollback" or len(facts.attempts) >= rollback.max_rollbacks:
        return None
    newest, budget = find_attempt(spec, facts, facts.attempt), _budget_steps(spec, facts)
    if newest is None or budget is None:
        return None
    start, phases = _start(spec, facts, budget, failed)
    replay = newest.replay_fraction
    if spec.corpus.general_use == "train":
        # The spec may ask for more than the largest replay by itself; a rollback never lowers it.
        replay = max(replay, min(LARGEST_REPLAY, replay * rollback.replay_factor))
    return AttemptRecord(
        number=facts.attempt + 1,
        learning_rate=float(f"{newest.learning_rate * rollback.learning_rate_factor:.6g}"),
        replay_fraction=round(replay, 6),
        start=start,
        phases=tuple(PhaseRecord(steps=p.steps, replay_fraction=p.replay_fraction) for p in phases),
        reason=shortened(reason, MAX_TEXT),
        time=timestamp(now),
    )


def rollback_sentence(attempt: AttemptRecord) -> str:
    """Return what a rollback does and why."""
    return (
        f"{attempt.reason}; attempt {attempt.number} starts from {attempt.start or 'the base model'} with learning rate"
        f" {attempt.learning_rate:g} and replay {attempt.replay_fraction:g}"
    )


def _measured_replay(spec: DomainAdaptationSpec, facts: Facts, base: Measure) -> float:
    requested = requested_replay(spec)
    return _replay_of_shift(facts, base) if requested is None else requested


def _replay_of_shift(facts: Facts, base: Measure) -> float:
    if facts.replay_fraction is not None:
        return facts.replay_fraction
    by_shift = earlier_replay_by_shift if facts.has_started_pretraining else replay_by_shift
    return by_shift(shift_nats(base))


def _first(spec: DomainAdaptationSpec, replay: float) -> Attempt:
    rate = learning_rate(spec.pretraining.method, spec.pretraining.optimizer.learning_rate)
    return Attempt(1, rate, replay)


def _recorded(record: AttemptRecord) -> Attempt:
    phases = tuple(MixturePhase(steps=p.steps, replay_fraction=p.replay_fraction) for p in record.phases)
    return Attempt(record.number, record.learning_rate, record.replay_fraction, record.start, phases)


def _budget_steps(spec: DomainAdaptationSpec, facts: Facts) -> int | None:
    """Return the steps of the whole budget, which follows from the first attempt's replay."""
    first = find_attempt(spec, facts, 1)
    if facts.prepare is None or first is None:
        return None
    return counted_steps(
        spec,
        ranks=facts.ranks,
        domain_tokens=facts.prepare.domain_tokens,
        replay=first.replay_fraction,
        sequence_length_tokens=facts.prepare.sequence_length_tokens,
    ).total_steps


def _start(
    spec: DomainAdaptationSpec, facts: Facts, budget_steps: int, failed: frozenset[str]
) -> tuple[str | None, tuple[MixturePhase, ...]]:
    """Return the checkpoint to start from and what was read on the way to it; None: the base model."""
    for number in range(facts.attempt, 0, -1):
        pretrain_facts, attempt = facts.pretrains.get(number), find_attempt(spec, facts, number)
        if pretrain_facts is None or attempt is None:
            continue
        for row in reversed(pretrain_facts.checkpoints):
            name = candidate_id(number, row.step)
            leaves_steps = attempt.steps_before + row.step < budget_steps
            if leaves_steps and name not in failed and _is_within_limit(spec, facts, row):
                phase = MixturePhase(steps=row.step, replay_fraction=attempt.replay_fraction)
                return name, (*attempt.phases, phase)
    return None, ()


def _is_within_limit(spec: DomainAdaptationSpec, facts: Facts, row: CheckpointFacts) -> bool:
    if facts.base is None or not is_finite(row):
        return False
    return perplexity.passes_on(spec, facts.base, measure_of_row(facts.base, row), "both")
