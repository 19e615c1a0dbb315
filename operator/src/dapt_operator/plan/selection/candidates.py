"""What could be taken: checkpoints, averages and interpolations of all attempts, with what is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dapt_contract.checkpoint import candidate_id
from dapt_contract.measure import Measure
from dapt_contract.stages.blend import BlendRow
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.plan.gates import GATES, GateFacts, Verdict, perplexity
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.ledger.stage_facts import Facts, measure_of_row
from dapt_operator.plan.stages.weights import blends, checkpoint_model, is_measurable


@dataclass(frozen=True)
class Candidate:
    """A model that could be taken, with what is known of it."""

    id: str
    attempt: int
    step: int | None
    """Optimizer step of a checkpoint; None for what is made of several models."""
    digest: str
    """First 12 hexadecimal digits."""
    model: ModelReference
    measure: Measure
    """With scores once it was evaluated."""
    evaluated: bool
    gain_a: float
    """On half A by perplexity alone: it is known of every candidate."""
    full_gain_a: float
    """On half A with the tasks; a fair rank only among candidates that were all evaluated."""
    passes_a: bool
    verdicts: tuple[Verdict, ...]
    """On half B; complete only when `evaluated` or when there are no tasks."""
    lost: str = ""
    """Why it cannot be measured: its evaluation failed for good, or scored other weights. Empty: it can."""

    @property
    def passes(self) -> bool:
        """Whether every gate judged so far lets it pass."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def first_breach(self) -> str:
        """The first gate that does not."""
        return next((verdict.message for verdict in self.verdicts if not verdict.passed), "")


def candidates(spec: DomainAdaptationSpec, facts: Facts) -> tuple[Candidate, ...]:
    """All candidates: by attempt, checkpoints in the order of their steps, then averages and interpolations."""
    if facts.base is None:
        return ()
    return tuple(_all(spec, facts, facts.base))


def _all(spec: DomainAdaptationSpec, facts: Facts, base: Measure) -> Iterator[Candidate]:
    for number in range(1, facts.attempt + 1):
        told = facts.pretrains.get(number)
        for row in told.checkpoints if told else ():
            name = candidate_id(number, row.step)
            model = checkpoint_model(spec, facts, number, row)
            yield _candidate(spec, facts, base, name, number, row, model)
        measured = {row.candidate: row for row in facts.blends.get(number, ())}
        for blend in blends(spec, facts, number) if measured else ():
            if blend.candidate in measured:
                row_ = measured[blend.candidate]
                yield _candidate(spec, facts, base, blend.candidate, number, row_, blend.model)


def _candidate(
    spec: DomainAdaptationSpec,
    facts: Facts,
    base: Measure,
    name: str,
    attempt: int,
    row: CheckpointFacts | BlendRow,
    model: ModelReference,
) -> Candidate:
    measured = measure_of_row(base, row)
    stored = facts.measures.get(name)
    lost = ""
    if stored is not None and not _fits(stored, row, model, facts.expected.get(name)):
        said = facts.expected.get(name) or stored.digest[:12]
        lost = f"its evaluation scored the weights {said}, and the candidate has {row.weights_digest}"
        stored = None
    elif stored is None and name in facts.given_up:
        said = facts.given_up[name]
        lost = f"its evaluation failed{f': {said}' if said else ''}"
    elif stored is None and name in facts.closed:
        lost = "its evaluation has ended and its numbers were let go: there is room for so many"
    shown = stored or measured
    weights = spec.selection.weights
    by_perplexity = (
        gain(weights, base, measured, "a")
        if weights.domain_perplexity > 0
        else base.domain.a.loss_nats - measured.domain.a.loss_nats
    )
    return Candidate(
        id=name,
        attempt=attempt,
        step=row.step if isinstance(row, CheckpointFacts) else None,
        digest=row.weights_digest,
        model=model,
        measure=shown,
        evaluated=stored is not None,
        gain_a=by_perplexity,
        full_gain_a=gain(weights, base, shown, "a"),
        passes_a=perplexity.passes_on(spec, base, measured, "a"),
        verdicts=tuple(v for gate in GATES for v in gate(spec, GateFacts(name, base, shown))),
        lost=lost,
    )


def _fits(
    stored: Measure, row: CheckpointFacts | BlendRow, model: ModelReference, expected: str | None
) -> bool:
    """Whether a result is about these very weights.

    A row names the digest of its own files; the result names that of the whole recipe, which is the same but for
    adapters. There the digest that the evaluation was told to expect decides; the trainer scores no other.
    """
    if expected is not None and expected != row.weights_digest:
        return False
    if model.adapters and isinstance(row, CheckpointFacts):
        return True
    return stored.digest.startswith(row.weights_digest)


def due(spec: DomainAdaptationSpec, known: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Candidates whose tasks are to be measured without being asked for by the selection, in their order.

    everyCheckpoint: every checkpoint, and the averages and interpolations that pass the perplexity gate on half A.
    candidates: only what passes it. end: none.
    """
    when = spec.evaluation.when
    if when == "end" or not has_scores(spec):
        return ()
    return tuple(
        one
        for one in known
        if not one.evaluated
        and not one.lost
        and is_measurable(one.measure)
        and (one.passes_a or (when == "everyCheckpoint" and one.step is not None))
    )
