"""Gathers the candidates: checkpoints, averages and interpolations of all attempts, with what was measured on each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from dapt_contract.checkpoint import candidate_id
from dapt_contract.measure import Measure
from dapt_contract.stages.blend import BlendRow
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.plan.gates import GATES, GateFacts, Verdict, perplexity
from dapt_operator.plan.gates.gain import gain, gain_by_perplexity
from dapt_operator.plan.gates.verdict import WITHIN_NOISE
from dapt_operator.plan.ledger.stage_facts import Facts, measure_of_row
from dapt_operator.plan.stage_parts.weights import blend_model, blends, checkpoint_model, is_measurable
from dapt_operator.remembered import remembered

_CACHED_JUDGEMENTS: Final = 128
"""Candidates of a few adaptations that are worked on; each keeps the scores of all its tasks."""
_CACHED_LEDGERS: Final = 16


@dataclass(frozen=True)
class Candidate:
    """A model that can be chosen, with what was measured on it."""

    id: str
    attempt: int
    step: int | None
    """Optimizer step of a checkpoint; None for what is made of several models."""
    digest: str
    """First 12 hexadecimal digits."""
    model: ModelReference
    measure: Measure
    """With scores once it was evaluated."""
    is_evaluated: bool
    gain_a: float
    """Gain on half A by perplexity alone: it is known of every candidate."""
    full_gain_a: float
    """Gain on half A with the tasks; a fair rank only among candidates that were all evaluated."""
    passes_a: bool
    """Whether the perplexity gate lets it pass on half A."""
    verdicts: tuple[Verdict, ...]
    """Verdicts on half B; complete only when `is_evaluated` or when there are no tasks."""
    why_unmeasurable: str = ""
    """Why no evaluation of it will give a result: one failed for good, or scored other weights. Empty: one can."""

    @property
    def passes(self) -> bool:
        """Whether every gate that has judged it lets it pass."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def first_breach(self) -> str:
        """Return the message of the first gate that does not let it pass; empty when all do."""
        return next((verdict.message for verdict in self.verdicts if not verdict.passed), "")

    @property
    def doubt(self) -> str:
        """Return the message of the first verdict that lets it pass though chance may have decided; empty for none."""
        return next((verdict.message for verdict in self.verdicts if verdict.reason == WITHIN_NOISE), "")


@remembered(_CACHED_LEDGERS)
def candidates(spec: DomainAdaptationSpec, facts: Facts) -> tuple[Candidate, ...]:
    """Return all candidates: by attempt, checkpoints in the order of their steps, then averages and interpolations."""
    if facts.base is None:
        return ()
    return tuple(_candidate(spec, facts, facts.base, table_row) for table_row in _table(spec, facts))


def find_candidate(spec: DomainAdaptationSpec, facts: Facts, name: str) -> Candidate | None:
    """Return the candidate with this id, judging no other; None when there is none."""
    if facts.base is None:
        return None
    for table_row in _table(spec, facts):
        if table_row.id == name:
            return _candidate(spec, facts, facts.base, table_row)
    return None


def due(spec: DomainAdaptationSpec, known: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates whose tasks are measured without waiting for the selection to ask, in their order.

    everyCheckpoint: every checkpoint, and the averages and interpolations that pass the perplexity gate on half A.
    candidates: only what passes it. end: none.
    """
    when = spec.evaluation.when
    if when == "end" or not has_scores(spec):
        return ()
    return tuple(
        candidate
        for candidate in known
        if not candidate.is_evaluated
        and not candidate.why_unmeasurable
        and is_measurable(candidate.measure)
        and (candidate.passes_a or (when == "everyCheckpoint" and candidate.step is not None))
    )


def _table(spec: DomainAdaptationSpec, facts: Facts) -> Iterator[_TableRow]:
    for number in range(1, facts.attempt + 1):
        pretrain_facts = facts.pretrains.get(number)
        for row in pretrain_facts.checkpoints if pretrain_facts else ():
            model = checkpoint_model(spec, facts, number, row)
            yield _TableRow(candidate_id(number, row.step), number, row, model)
        rows = {row.candidate: row for row in facts.blends.get(number, ())}
        for blend in blends(spec, facts, number) if rows else ():
            # An edit of the selection may have added blends that no run has measured yet.
            if blend.candidate in rows:
                model = blend_model(spec, facts, blend)
                yield _TableRow(blend.candidate, number, rows[blend.candidate], model)


@dataclass(frozen=True)
class _TableRow:
    """A row of a table of checkpoints or blends, and where its weights lie."""

    id: str
    attempt: int
    row: CheckpointFacts | BlendRow
    model: ModelReference


@dataclass(frozen=True)
class _Judgement:
    """What follows from a candidate's numbers alone."""

    measure: Measure
    gain_a: float
    full_gain_a: float
    passes_a: bool
    verdicts: tuple[Verdict, ...]


@remembered(_CACHED_JUDGEMENTS)
def _judge(
    spec: DomainAdaptationSpec,
    base: Measure,
    row: CheckpointFacts | BlendRow,
    evaluated: Measure | None,
    name: str,
) -> _Judgement:
    by_row = measure_of_row(base, row)
    measure = evaluated or by_row
    weights = spec.selection.weights
    gate_facts = GateFacts(name, base, measure, is_evaluated=evaluated is not None)
    return _Judgement(
        measure=measure,
        gain_a=gain_by_perplexity(weights, base, by_row, "a"),
        full_gain_a=gain(weights, base, measure, "a"),
        passes_a=perplexity.passes_on(spec, base, by_row, "a"),
        verdicts=tuple(verdict for gate in GATES for verdict in gate.judge(spec, gate_facts)),
    )


def _candidate(spec: DomainAdaptationSpec, facts: Facts, base: Measure, table_row: _TableRow) -> Candidate:
    row = table_row.row
    evaluated, why_unmeasurable = _evaluation(facts, table_row)
    judgement = _judge(spec, base, row, evaluated, table_row.id)
    return Candidate(
        id=table_row.id,
        attempt=table_row.attempt,
        step=row.step if isinstance(row, CheckpointFacts) else None,
        digest=row.weights_digest,
        model=table_row.model,
        measure=judgement.measure,
        is_evaluated=evaluated is not None,
        gain_a=judgement.gain_a,
        full_gain_a=judgement.full_gain_a,
        passes_a=judgement.passes_a,
        verdicts=judgement.verdicts,
        why_unmeasurable=why_unmeasurable,
    )


def _evaluation(facts: Facts, table_row: _TableRow) -> tuple[Measure | None, str]:
    """Return a candidate's evaluation, and why there will be none; the latter is empty while one can still come."""
    stored = facts.measures.get(table_row.id)
    expected = facts.expected.get(table_row.id)
    if stored is not None:
        if _is_about(stored, table_row, expected):
            return stored, ""
        scored = expected or stored.digest[:12]
        return (
            None,
            f"its evaluation scored the weights {scored}, and the candidate has {table_row.row.weights_digest}",
        )
    if table_row.id in facts.given_up:
        message = facts.given_up[table_row.id]
        return None, f"its evaluation failed{f': {message}' if message else ''}"
    if table_row.id in facts.dropped_evaluations:
        return None, "its evaluation has ended and its numbers were dropped to keep the status small"
    return None, ""


def _is_about(stored: Measure, table_row: _TableRow, expected: str | None) -> bool:
    """Whether a result is about these very weights.

    A row names the digest of its own files; the result names that of the whole recipe, which is the same but for
    adapters. There the digest that the evaluation was given decides; the trainer scores no other.
    """
    if expected is not None and expected != table_row.row.weights_digest:
        return False
    if table_row.model.adapters and isinstance(table_row.row, CheckpointFacts):
        return True
    return stored.digest.startswith(table_row.row.weights_digest)
