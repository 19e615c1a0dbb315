"""Which candidate is taken. Half A ranks, half B and the tasks judge; three are judged at most.

Everything is decided from stored numbers, so an edited gate or weight decides again without a run, unless a candidate
comes first that was never evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapt_contract.checkpoint import candidate_id
from dapt_contract.metric import Measure
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_operator.api.conditions import GATES_BREACHED, NO_GAIN
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.plan.blueprint import has_scores
from dapt_operator.plan.facts import Facts, measure_of_checkpoint
from dapt_operator.plan.gain import gain
from dapt_operator.plan.gates import GATES, GateFacts, Verdict, perplexity
from dapt_operator.plan.resolve import learning_rate, replay_fraction

MAX_JUDGED = 3


@dataclass(frozen=True)
class Candidate:
    """A checkpoint with what is known of it."""

    id: str
    row: CheckpointFacts
    measure: Measure
    """With scores once it was evaluated."""
    evaluated: bool
    gain_a: float
    """By perplexity alone: it is known of every candidate, so ranks are fair."""
    passes_a: bool
    verdicts: tuple[Verdict, ...]
    """On half B; complete only when `evaluated` or when there are no tasks."""

    @property
    def passes(self) -> bool:
        """Whether every gate judged so far lets it pass."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def first_breach(self) -> str:
        """The first gate that does not."""
        return next((verdict.message for verdict in self.verdicts if not verdict.passed), "")


@dataclass(frozen=True)
class Selected:
    """A decision."""

    candidate: Candidate
    reason: str
    passed: bool
    """False only under onBreach: Warn."""


@dataclass(frozen=True)
class NeedsMeasure:
    """The candidate that is evaluated next."""

    candidate: Candidate


@dataclass(frozen=True)
class Breached:
    """None passes; a person decides."""

    reason: str
    message: str
    best: Candidate | None


Choice = Selected | NeedsMeasure | Breached


def candidates(spec: DomainAdaptationSpec, facts: Facts, attempt: int = 1) -> tuple[Candidate, ...]:
    """All candidates in the order of their steps."""
    if facts.base is None or facts.pretrain is None:
        return ()
    return tuple(_candidate(spec, facts, facts.base, row, attempt) for row in facts.pretrain.checkpoints)


def _candidate(
    spec: DomainAdaptationSpec, facts: Facts, base: Measure, row: CheckpointFacts, attempt: int
) -> Candidate:
    name = candidate_id(attempt, row.step)
    measured = measure_of_checkpoint(base, row)
    stored = facts.measures.get(name)
    shown = stored or measured
    verdicts = tuple(v for gate in GATES for v in gate(spec, GateFacts(name, base, shown)))
    return Candidate(
        id=name,
        row=row,
        measure=shown,
        evaluated=stored is not None,
        gain_a=gain(spec.selection.weights, base, measured, "a")
        if spec.selection.weights.domain_perplexity > 0
        else base.domain.a.loss_nats - measured.domain.a.loss_nats,
        passes_a=perplexity.passes_on(spec, base, measured, "a"),
        verdicts=verdicts,
    )


def choose(spec: DomainAdaptationSpec, facts: Facts, attempt: int = 1) -> Choice:
    """Take a candidate, ask for a measure, or say why none passes."""
    known = candidates(spec, facts, attempt)
    warns = spec.gates.on_breach == "Warn"
    passing = sorted((c for c in known if c.passes_a), key=lambda c: (-c.gain_a, c.row.step))
    judged: list[Candidate] = []
    for candidate in passing[:MAX_JUDGED]:
        judged.append(candidate)
        if has_scores(spec) and not candidate.evaluated:
            if _fails_already(candidate):
                continue
            return NeedsMeasure(candidate)
        if candidate.passes:
            return Selected(candidate, _reason(len(passing), judged), passed=True)
    if warns and known:
        best = (judged or sorted(known, key=lambda c: (-c.gain_a, c.row.step)))[0]
        if has_scores(spec) and not best.evaluated:
            return NeedsMeasure(best)
        why = best.first_breach or "its general perplexity on the half that ranks is over the limit"
        return Selected(best, f"largest gain; it breaches a gate and onBreach is Warn: {why}", passed=False)
    return _breached(spec, facts, known, judged)


def _fails_already(candidate: Candidate) -> bool:
    """Whether stored perplexities alone fail it, so that no evaluation is spent on it."""
    return any(
        not verdict.passed and (verdict.gate == perplexity.GATE or verdict.reason == "LimitMissed")
        for verdict in candidate.verdicts
    )


def _reason(passing: int, judged: list[Candidate]) -> str:
    many = "candidate that passes" if passing == 1 else "candidates that pass"
    if len(judged) == 1:
        return f"largest gain of {passing} {many} the gates"
    failed = " and ".join(earlier.id for earlier in judged[:-1])
    return (
        f"largest gain of {passing} {many} the perplexity gate, after {failed} failed on the half that judges"
    )


def _breached(
    spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...], judged: list[Candidate]
) -> Breached:
    shown = judged or sorted(known, key=lambda c: (-c.gain_a, c.row.step))[:MAX_JUDGED]
    if not shown:
        ended = facts.pretrain.message if facts.pretrain else ""
        said = f" ({ended})" if ended else ""
        return Breached(
            GATES_BREACHED, f"pretraining ended without a checkpoint{said}; {remedies(spec, facts)}", None
        )
    assert facts.base is not None
    base = facts.base
    told = "; ".join(c.first_breach or breach_on_a(spec, base, c) for c in shown)
    only_gain = all(
        not c.passes and all(v.passed or v.gate == "domainGain" for v in c.verdicts) for c in judged
    ) and bool(judged)
    return Breached(
        NO_GAIN if only_gain else GATES_BREACHED,
        f"no candidate passes the gates: {told}; {remedies(spec, facts)}",
        shown[0],
    )


def breach_on_a(spec: DomainAdaptationSpec, base: Measure, candidate: Candidate) -> str:
    """Why a candidate is not even ranked."""
    rise = perplexity.increase(base.general, candidate.measure.general, "a")
    limit = spec.gates.max_general_perplexity_increase
    return f"general perplexity of {candidate.id} is {rise:+.1%} on the half that ranks, over the limit of {limit:+.1%}"


def remedies(spec: DomainAdaptationSpec, facts: Facts) -> str:
    """The three ways out, and the fourth that costs nothing."""
    rate = learning_rate(spec.pretraining.method, spec.pretraining.optimizer.learning_rate)
    replay = replay_fraction(spec, facts.base)
    share = f" (it was {replay:g})" if replay is not None else ""
    return (
        f"everything is kept: change gates or selection here to decide again from the stored numbers, or start a new"
        f" adaptation with more corpus.replayFraction{share}, a lower learningRate (it was {rate:g}) or fewer tokens"
    )
