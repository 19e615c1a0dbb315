"""The lists and blocks of the status: stages, candidates, attempts, what was resolved, the estimate, the cost."""

from __future__ import annotations

import math
from dataclasses import replace

from dapt_contract.measure import Score
from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.schema.immutable import FROZEN_BY
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.api.v1alpha1.spec import has_scores
from dapt_operator.api.v1alpha1.status import (
    MAX_CANDIDATES,
    AttemptStatus,
    CandidateStatus,
    Frozen,
    PlanSummary,
    ProgressStatus,
    Resolved,
    ResolvedModel,
    SelectedStatus,
    StageState,
    StageStatus,
    TaskScore,
    Usage,
)
from dapt_operator.plan.assess import ChainInputs
from dapt_operator.plan.chain import Position
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.ledger.compaction import closed_run_counts
from dapt_operator.plan.ledger.gpu_hours import ended_seconds
from dapt_operator.plan.ledger.records import find, find_state, lineage_of, printable
from dapt_operator.plan.ledger.retries import JUDGED
from dapt_operator.plan.observed import Observed
from dapt_operator.plan.selection import choose
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.sizing.estimate import estimate
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.resolve import learning_rate, replay_fraction, sequence_length
from dapt_operator.plan.sizing.warnings import told_by_prepare
from dapt_operator.plan.stages.attempts import attempt, total_steps
from dapt_operator.plan.status.goodput import goodput
from dapt_operator.plan.transitions import Do
from dapt_operator.plan.waiting import waits_for

MAX_LOG_LINES = 20
MAX_LOG_BYTES = 2048
MAX_LINE = 500


def stage(record: RunRecord, observed: Observed) -> StageStatus:
    """The newest try of one lineage."""
    identity = RunIdentity(
        namespace=observed.owner.namespace,
        name=observed.owner.name,
        uid=observed.owner.uid,
        stage=record.stage,
        attempt=record.attempt,
        candidate=record.candidate,
        try_number=record.try_number,
        fence=record.fence,
    )
    run = find_state(observed.runs, record)
    waits = waits_for(run) if run is not None else ""
    return StageStatus(
        name=record.stage,
        kind=record.kind,
        attempt=record.attempt,
        try_number=record.try_number,
        state=_stage_state(record, observed),
        candidate=record.candidate,
        run_key=identity.key,
        reason=record.cause,
        exit_code=record.exit_code,
        start_time=record.started,
        completion_time=record.completed,
        message=(record.message or waits)[:4096] or None,
        last_log_lines=_log_lines(record, observed),
    )


def _log_lines(record: RunRecord, observed: Observed) -> tuple[str, ...]:
    """Of the newest try that failed, as they come in; kept until the stage succeeds."""
    if record.state == "Succeeded":
        return ()
    lineage = lineage_of(record)
    tries = [run for run in observed.runs if lineage_of(run.identity) == lineage and run.last_log_lines]
    if tries:
        return bounded_lines(max(tries, key=lambda run: run.identity.try_number).last_log_lines)
    known = (one for one in observed.status.stages if (one.name, one.attempt, one.candidate) == lineage)
    return next((one.last_log_lines for one in known), ())


def bounded_lines(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The last lines that fit: at most 20 and 2 KiB, without control characters. They come from a tenant's pod."""
    kept: list[str] = []
    room = MAX_LOG_BYTES
    for line in reversed(lines[-MAX_LOG_LINES:]):
        clean = printable(line[:MAX_LINE])
        room -= len(clean.encode())
        if room < 0:
            break
        kept.append(clean)
    return tuple(reversed(kept))


def _stage_state(record: RunRecord, observed: Observed) -> StageState:
    if record.state == "Open":
        return "Running" if record.started else "Pending"
    if record.state == "Succeeded":
        return "Succeeded"
    suspended = observed.wish.spec is not None and observed.wish.spec.suspend
    return "Suspended" if record.retry and suspended else "Failed"


def most_telling(known: tuple[Candidate, ...], chosen: str | None) -> tuple[Candidate, ...]:
    """At most 100, in their order: the chosen one; then what passes the perplexity gate; then what was evaluated; the
    newest first of each."""
    if len(known) <= MAX_CANDIDATES:
        return known
    places = sorted(
        range(len(known)),
        key=lambda i: (known[i].id != chosen, not known[i].passes_a, not known[i].evaluated, -i),
    )
    return tuple(known[i] for i in sorted(places[:MAX_CANDIDATES]))


def candidate(situation: ChainInputs, reached: Position, one: Candidate) -> CandidateStatus:
    """One candidate with what was measured."""
    base = reached.facts.base
    assert base is not None
    measured = one.measure
    is_measured = one.evaluated or not has_scores(situation.spec)
    passes = one.passes_a and one.passes
    why = (
        one.lost
        or one.first_breach
        or ("" if one.passes_a else choose.breach_on_a(situation.spec, base, one))
    )
    return CandidateStatus(
        id=one.id,
        attempt=one.attempt,
        step=one.step,
        digest=one.digest,
        domain_perplexity=number(measured.domain.both.perplexity),
        general_perplexity=number(measured.general.both.perplexity),
        forgetting=number(perplexity.increase(base.general, measured.general, "both")),
        domain_perplexity_decrease=number(-perplexity.increase(base.domain, measured.domain, "both")),
        gain=number(gain(situation.spec.selection.weights, base, measured, "both")),
        tasks={score.name: _score(score) for score in measured.scores},
        passes=passes if is_measured or not passes else None,
        message=why[:4096] or None,
    )


def _score(score: Score) -> TaskScore:
    error = score.difference_standard_error
    return TaskScore(
        score=score.score,
        change_points=None if score.difference is None else number(100 * score.difference),
        standard_error_points=None if error is None else number(100 * error),
    )


def number(value: float) -> float | None:
    """Six significant digits; what is not a number is left out."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def resolved(observed: Observed, situation: ChainInputs, reached: Position) -> Resolved:
    """What 'automatic' came to, as far as it is known."""
    prepared, numbers, spec = reached.facts.prepare, reached.numbers, situation.spec
    model = None
    if prepared is not None:
        model = ResolvedModel(
            source=spec.model.source, revision=prepared.model.revision, digest=prepared.model.digest
        )
    tuning = spec.finetuning
    known = Resolved(
        model=model,
        profile=observed.wish.profile_name,
        learning_rate=learning_rate(spec.pretraining.method, spec.pretraining.optimizer.learning_rate),
        finetuning_learning_rate=learning_rate(tuning.method, tuning.optimizer.learning_rate)
        if tuning
        else None,
        replay_fraction=replay_fraction(spec, reached.facts.base),
        sequence_length=sequence_length(spec, prepared),
    )
    if numbers is None:
        return known
    batch = numbers.batch
    return known.model_copy(
        update={
            "world_size": numbers.gang.world_size,
            "global_batch_size": batch.global_batch_size,
            "micro_batch_size": batch.micro_batch_size,
            "gradient_accumulation_steps": batch.accumulation,
            "zero_stage": batch.zero_stage,
            "offload": batch.offload,
            "gradient_checkpointing": batch.gradient_checkpointing,
            "precision": batch.precision,
            "total_tokens": numbers.steps.total_tokens,
            "total_steps": numbers.steps.total_steps,
        }
    )


def frozen(ledger: Ledger) -> Frozen:
    """Blocks whose stage has started."""
    started = {record.kind for record in ledger.runs} | {stage for stage, _, _ in closed_run_counts(ledger)}
    return Frozen.model_validate({block: True for block, kind in FROZEN_BY.items() if kind in started})


def plan_summary(situation: ChainInputs, reached: Position) -> PlanSummary:
    """The estimate, by what is known now."""
    prepared = reached.facts.prepare
    known = estimate(
        situation.spec,
        situation.profile,
        grown_model(prepared.model, situation.spec, prepared.tokenizer) if prepared else None,
        prepared.domain_tokens if prepared else None,
        general_tokens=prepared.general_tokens if prepared else None,
        base=reached.facts.base,
        sequence_length_tokens=prepared.sequence_length_tokens if prepared else None,
    )
    said: tuple[str, ...] = known.warnings
    if prepared is not None:
        twice = told_by_prepare(situation.spec, prepared.model, prepared.domain_tokens)
        said = (*prepared.warnings, *(sentence for sentence in said if sentence not in twice))
    return PlanSummary(
        tokens=known.total_tokens,
        steps=known.total_steps,
        gpu_hours=None if known.gpu_hours is None else number(known.gpu_hours),
        memory_gib_per_gpu=None if known.memory_gib is None else number(known.memory_gib),
        warnings=tuple(dict.fromkeys(sentence[:1024] for sentence in said))[:32],
    )


def attempts(situation: ChainInputs, reached: Position, ledger: Ledger) -> tuple[AttemptStatus, ...]:
    """Pretrainings so far, and one that was just decided on."""
    spec, facts = situation.spec, replace(reached.facts, attempts=ledger.attempts)
    if find(ledger, "pretrain", 1, None) is None:
        return ()
    found = []
    for number in range(1, facts.attempt + 1):
        known = attempt(spec, facts, number)
        record = find(ledger, "pretrain", number, None)
        if known is None:
            continue
        told = facts.pretrains.get(number)
        ended = record is not None and (
            record.state == "Succeeded" or (record.cause in JUDGED and not record.retry)
        )
        given_up = facts.attempts[number - 1].reason if number < facts.attempt else None
        found.append(
            AttemptStatus(
                number=number,
                learning_rate=known.learning_rate,
                replay_fraction=known.replay_fraction,
                start=known.start,
                total_steps=total_steps(spec, facts, known),
                ended_by=told.ended_by if ended and told else None,
                reason=given_up or (told.message or None if ended and told else None),
            )
        )
    return tuple(found)


def usage(
    observed: Observed, ledger: Ledger, used_seconds: float, progress: ProgressStatus | None, *, ticked: bool
) -> Usage:
    """The cost so far; of a running stage it is brought up to date with the progress, not at each visit."""
    ended = ended_seconds(ledger) / 3600
    old = observed.status.usage
    stored = (old.gpu_hours or 0.0) if old else 0.0
    hours = used_seconds / 3600 if ticked else max(stored, ended)
    gone = ledger.closed.restarts if ledger.closed is not None else 0
    restarts = gone + sum(record.restarts for record in ledger.runs)
    share = goodput(observed, ledger, progress) if ticked or old is None or not observed.live else old.goodput
    return Usage(gpu_hours=round(hours, 4), goodput=share, restarts=restarts)


def selected(reached: Position) -> SelectedStatus | None:
    """The candidate that was taken; when the budget ended first, the best so far is kept."""
    if isinstance(reached.choice, choose.Selected):
        one, reason = reached.choice.candidate, reached.choice.reason
    elif isinstance(reached.choice, choose.NeedsMeasure) and reached.do is Do.END:
        one = reached.choice.candidate
        reason = "largest gain by perplexity when limits.gpuHours was used up; its tasks were not measured"
        if one.evaluated:
            reason = "largest gain so far when limits.gpuHours was used up; not all candidates were measured"
    else:
        return None
    return SelectedStatus(id=one.id, reason=reason[:1024], digest=one.digest)
