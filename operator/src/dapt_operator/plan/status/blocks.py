"""Builds the lists and blocks of the status: stages, candidates, attempts, resolved values, estimate, cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from dapt_contract.run_identity import RunIdentity
from dapt_contract.sentences import shortened
from dapt_contract.stages.tuning_data import TuningKind
from dapt_contract.untrusted.printable import printable
from dapt_operator.api.schema.immutable import FREED_BY_FAILURE, FROZEN_BY, FROZEN_BY_SUCCESS
from dapt_operator.api.v1alpha1.base import MAX_MESSAGE, MAX_TEXT
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import (
    MAX_WARNINGS,
    AttemptStatus,
    Frozen,
    PlanSummary,
    Resolved,
    ResolvedModel,
    ResolvedTuningData,
    StageState,
    StageStatus,
    Usage,
)
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.progress import ProgressStatus
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.plan.chain_parts.assess import ChainInputs
from dapt_operator.plan.chain_parts.position import Position
from dapt_operator.plan.chain_parts.waiting import waits_for
from dapt_operator.plan.ledger import gpu_hours
from dapt_operator.plan.ledger.retries import JUDGED
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.observed import Observed, find_run
from dapt_operator.plan.sizing.estimate import EstimateFacts, estimate
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.model_fit.measuring import measuring_stages
from dapt_operator.plan.sizing.resolve import learning_rate, sequence_length
from dapt_operator.plan.sizing.stage_needs import spread_text
from dapt_operator.plan.sizing.warnings import warnings_also_from_prepare
from dapt_operator.plan.stage_parts.attempts import find_attempt, first_replay, total_steps
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, measuring_ranks
from dapt_operator.plan.stage_parts.tuning import prepared_size
from dapt_operator.plan.stages.pretrain import PretrainingPlan
from dapt_operator.plan.stages.tuning_data import current_warnings
from dapt_operator.plan.status.candidate_rows import rounded
from dapt_operator.plan.status.goodput import goodput
from dapt_operator.plan.status.progress import stage_progress
from dapt_operator.remembered import remembered
from dapt_operator.stage_run import Owner

MAX_LOG_LINES: Final = 20
MAX_LOG_BYTES: Final = 2048
MAX_LINE_CHARACTERS: Final = 500
_CACHED_ROWS: Final = 128
_CACHED_PLANS: Final = 16


def stage_status(record: RunRecord, observed: Observed) -> StageStatus:
    """Return the newest run of one piece of work."""
    owner = observed.owner
    if record.has_succeeded:
        return _succeeded_stage(record, owner.namespace, owner.name, owner.uid)
    run = find_run(observed.runs, record)
    message = record.message or (waits_for(run) if run is not None else "")
    row = _stage_row(record, owner, _stage_state(record, observed), message, _log_lines(record, observed))
    stored = next((stage.progress for stage in observed.status.stages if stage.run_key == row.run_key), None)
    reached = stage_progress(run, stored, observed.now)
    return row if reached is None else row.with_values(progress=reached)


@remembered(_CACHED_ROWS)
def _succeeded_stage(record: RunRecord, namespace: str, name: str, uid: str) -> StageStatus:
    owner = Owner(namespace=namespace, name=name, uid=uid)
    return _stage_row(record, owner, "Succeeded", record.message, ())


def _stage_row(
    record: RunRecord, owner: Owner, state: StageState, message: str, lines: tuple[str, ...]
) -> StageStatus:
    identity = RunIdentity(
        namespace=owner.namespace,
        name=owner.name,
        uid=owner.uid,
        stage=record.stage,
        attempt=record.attempt,
        candidate=record.candidate,
        try_number=record.try_number,
        fence=max(1, record.fence),  # no part of the key
    )
    return StageStatus(
        name=record.stage,
        kind=record.kind,
        attempt=record.attempt,
        try_number=record.try_number,
        state=state,
        candidate=record.candidate,
        run_key=identity.key,
        reason=record.cause,
        exit_code=record.exit_code,
        start_time=record.started,
        completion_time=record.completed,
        message=shortened(message, MAX_MESSAGE) or None,
        last_log_lines=lines,
    )


def _log_lines(record: RunRecord, observed: Observed) -> tuple[str, ...]:
    """Return the last lines of the newest run that failed; they are kept until the stage succeeds."""
    key = record.stage_key
    runs = [run for run in observed.runs if run.last_log_lines and run.stage_key == key]
    if runs:
        return bounded_lines(max(runs, key=lambda run: run.identity.try_number).last_log_lines)
    # The pods may be gone by now: what the stored status has is all that is left of their log.
    stored = (
        stage.last_log_lines
        for stage in observed.status.stages
        if (stage.name, stage.attempt, stage.candidate) == key
    )
    return next(stored, ())


def bounded_lines(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Return the last lines that fit: at most 20 and 2 KiB, without control characters; a tenant's pod wrote them."""
    kept: list[str] = []
    left_bytes = MAX_LOG_BYTES
    for line in reversed(lines[-MAX_LOG_LINES:]):
        clean = printable(shortened(line, MAX_LINE_CHARACTERS))
        left_bytes -= len(clean.encode())
        if left_bytes < 0:
            break
        kept.append(clean)
    return tuple(reversed(kept))


def _stage_state(record: RunRecord, observed: Observed) -> StageState:
    if record.is_open:
        return "Running" if record.started else "Pending"
    return "Suspended" if record.retry and observed.is_suspended else "Failed"


def resolved_values(inputs: ChainInputs, position: Position) -> Resolved:
    """Return what the automatic fields of the spec came to, as far as it is known."""
    profile_name = inputs.desired.profile_name
    return _resolved(inputs.spec, profile_name, position.facts, position.stage_inputs, position.numbers)


@remembered(_CACHED_PLANS)
def _resolved(
    spec: DomainAdaptationSpec,
    profile_name: str,
    facts: Facts,
    stage_inputs: StageInputs | None,
    numbers: PretrainingPlan | None,
) -> Resolved:
    prepared = facts.prepare
    model = None
    if prepared is not None:
        model = ResolvedModel(
            source=spec.model.source, revision=prepared.model.revision, digest=prepared.model.digest
        )
    tuning = spec.finetuning
    resolved = Resolved(
        model=model,
        profile=profile_name,
        learning_rate=learning_rate(spec.pretraining.method, spec.pretraining.optimizer.learning_rate),
        finetuning_learning_rate=learning_rate(tuning.method, tuning.optimizer.learning_rate)
        if tuning
        else None,
        replay_fraction=first_replay(spec, facts),
        sequence_length=sequence_length(spec, prepared),
        measuring=_measuring(stage_inputs),
        finetuning_data=_tuning_data(stage_inputs, "instructions"),
        preference_data=_tuning_data(stage_inputs, "preferences"),
    )
    if numbers is None:
        return resolved
    batch = numbers.batch
    return resolved.with_values(
        world_size=numbers.layout.world_size,
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        gradient_accumulation_steps=batch.accumulation,
        zero_stage=batch.zero_stage,
        offload=batch.offload,
        gradient_checkpointing=batch.gradient_checkpointing,
        precision=batch.precision,
        total_tokens=numbers.steps.total_tokens,
        total_steps=numbers.steps.total_steps,
    )


def _measuring(inputs: StageInputs | None) -> tuple[str, ...]:
    """Return `baseline, verify: 1 whole copy` for stages that divide the model alike; refused ones are left out."""
    if inputs is None:
        return ()
    stages_by_way: dict[str, list[str]] = {}
    for stage in measuring_stages(inputs.spec):
        ranks = measuring_ranks(inputs, stage)
        if ranks.refusal is None:
            world_size = ranks.resources.nodes * ranks.resources.processes_per_node
            stages_by_way.setdefault(spread_text(ranks.spread, world_size), []).append(stage)
    return tuple(f"{', '.join(stages)}: {way}" for way, stages in stages_by_way.items())


def _tuning_data(inputs: StageInputs | None, kind: TuningKind) -> ResolvedTuningData | None:
    data = None if inputs is None else inputs.instructions if kind == "instructions" else inputs.preferences
    if data is None or data.facts is None:
        return None
    return ResolvedTuningData(records=data.facts.records, digest=data.content_digest)


@remembered(_CACHED_PLANS)
def frozen_blocks(ledger: Ledger) -> Frozen:
    """Return the blocks of the spec that may not change any more."""
    started = ledger.started_kinds()
    succeeded = {record.kind for record in ledger.runs if record.has_succeeded}
    freed = {kind for kind in FREED_BY_FAILURE if ledger.has_failed_for_good(kind)}
    frozen = {block: True for block, kind in FROZEN_BY.items() if kind in started - freed}
    ended = {block: True for block, kind in FROZEN_BY_SUCCESS.items() if kind in succeeded}
    return Frozen.model_validate(frozen | ended)


def plan_summary(inputs: ChainInputs, position: Position) -> PlanSummary:
    """Return the estimate, by what is known now."""
    return _plan_summary(inputs.spec, inputs.profile, position.facts, position.stage_inputs)


# Each reconcile writes the estimate, and it changes with what stages have counted alone.
@remembered(_CACHED_PLANS)
def _plan_summary(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    facts: Facts,
    stage_inputs: StageInputs | None,
) -> PlanSummary:
    prepared = facts.prepare
    known = EstimateFacts(base=facts.base)
    if prepared is not None and stage_inputs is not None:
        known = EstimateFacts(
            model=grown_model(prepared.model, spec, prepared.tokenizer),
            domain_tokens=prepared.domain_tokens,
            general_tokens=prepared.general_tokens,
            base=facts.base,
            sequence_length_tokens=prepared.sequence_length_tokens,
            instructions=prepared_size(stage_inputs.instructions),
            preferences=prepared_size(stage_inputs.preferences),
        )
    estimated = estimate(spec, profile, known)
    warnings: tuple[str, ...] = estimated.warnings
    if prepared is not None and stage_inputs is not None:
        reported = warnings_also_from_prepare(spec, prepared.model, prepared.domain_tokens)
        warnings = (*current_warnings(stage_inputs), *(text for text in warnings if text not in reported))
    return PlanSummary(
        tokens=estimated.total_tokens,
        steps=estimated.total_steps,
        gpu_hours=None if estimated.gpu_hours is None else rounded(estimated.gpu_hours),
        memory_gib_per_gpu=None if estimated.memory_gib is None else rounded(estimated.memory_gib),
        warnings=tuple(dict.fromkeys(shortened(text, MAX_TEXT) for text in warnings))[:MAX_WARNINGS],
    )


def attempt_statuses(inputs: ChainInputs, position: Position, ledger: Ledger) -> tuple[AttemptStatus, ...]:
    """Return the attempts so far, and one that was just decided on."""
    return _attempt_statuses(inputs.spec, position.facts, ledger)


@remembered(_CACHED_PLANS)
def _attempt_statuses(spec: DomainAdaptationSpec, facts: Facts, ledger: Ledger) -> tuple[AttemptStatus, ...]:
    facts = replace(facts, attempts=ledger.attempts)
    if ledger.find("pretrain") is None:
        return ()
    statuses = []
    for number in range(1, facts.attempt + 1):
        attempt = find_attempt(spec, facts, number)
        if attempt is None:
            continue
        record = ledger.find("pretrain", number)
        ended = facts.pretrains.get(number) if record is not None and _has_ended(record) else None
        given_up = facts.attempts[number - 1].reason if number < facts.attempt else None
        statuses.append(
            AttemptStatus(
                number=number,
                learning_rate=attempt.learning_rate,
                replay_fraction=attempt.replay_fraction,
                start=attempt.start,
                total_steps=total_steps(spec, facts, attempt),
                ended_by=ended.ended_by if ended else None,
                reason=given_up or (ended.message or None if ended else None),
            )
        )
    return tuple(statuses)


def _has_ended(record: RunRecord) -> bool:
    """Whether a pretraining has ended, by its own plan or by the stop rule."""
    return record.has_succeeded or (record.cause in JUDGED and not record.retry)


def usage(
    observed: Observed,
    ledger: Ledger,
    used_seconds: float,
    progress: ProgressStatus | None,
    *,
    is_progress_new: bool,
    profile: AdaptationProfileSpec | None = None,
) -> Usage:
    """Return the cost so far. `profile`: whose price counts; None: it is not known now, and the stored cost stays.

    That of a running stage moves only with its progress, not at each reconcile: each change is a write of the status.
    """
    stored = observed.status.usage
    stored_hours = (stored.gpu_hours or 0.0) if stored else 0.0
    noted_hours = gpu_hours.used_seconds(ledger, (), observed.now) / 3600
    hours = used_seconds / 3600 if is_progress_new else max(stored_hours, noted_hours)
    is_due = is_progress_new or stored is None or not observed.live
    share = goodput(observed, ledger, progress) if is_due or stored is None else stored.goodput
    cost = stored.cost if stored else None
    if profile is not None:
        price = profile.accelerator.price_per_hour
        cost = None if price is None else round(hours * price, 2)
    return Usage(gpu_hours=round(hours, 4), cost=cost, goodput=share, restarts=ledger.restarts)
