"""Builds the status: what users read, with conditions as kstatus wants them, and the planner's ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from dapt_contract.stages.publish import PublishFacts
from dapt_operator.api.v1alpha1 import conditions as api
from dapt_operator.api.v1alpha1.conditions import is_true, set_condition, timestamp
from dapt_operator.api.v1alpha1.status import (
    MAX_STAGES,
    Condition,
    Digests,
    DomainAdaptationStatus,
    OutputStatus,
    Usage,
)
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.plan.chain_parts.assess import ChainInputs
from dapt_operator.plan.chain_parts.position import Position
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.ledger import gpu_hours
from dapt_operator.plan.ledger.gpu_hours import note_running
from dapt_operator.plan.ledger.update import request_stop
from dapt_operator.plan.observed import Observed, Refusal
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.selection.choose import Selected
from dapt_operator.plan.stages.publish import run_digest
from dapt_operator.plan.status import blocks, candidate_rows
from dapt_operator.plan.status.conditions import ConditionValue, chain_conditions, refusal_conditions
from dapt_operator.plan.status.end_size import reduce_to_tables
from dapt_operator.plan.status.ended_spec import block_digests, message_about_edits
from dapt_operator.plan.status.internal_error import healed_conditions
from dapt_operator.plan.status.progress import preflight, progress, with_forecast
from dapt_operator.plan.transitions import Action, State
from dapt_operator.stage_run import StageRun

PHASE_OF_STATE: Final[dict[State, str]] = {
    State.DESTINATION: api.PHASE_PREPARING,
    State.PREPARE: api.PHASE_PREPARING,
    State.BASELINE: api.PHASE_MEASURING_BASE,
    State.PRETRAIN: api.PHASE_PRETRAINING,
    State.BLEND: api.PHASE_EVALUATING,
    State.SELECT: api.PHASE_SELECTING,
    State.EVALUATE: api.PHASE_EVALUATING,
    State.INSTRUCTIONS: api.PHASE_PREPARING,
    State.FINETUNE: api.PHASE_FINETUNING,
    State.PREFERENCES: api.PHASE_PREPARING,
    State.ALIGN: api.PHASE_ALIGNING,
    State.VERIFY: api.PHASE_VERIFYING,
    State.PUBLISH: api.PHASE_PUBLISHING,
    State.PUBLISHED: api.PHASE_PUBLISHED,
}


def refused_status(observed: Observed, refusal: Refusal, reported: Ledger | None) -> DomainAdaptationStatus:
    """Return the stored status with the reason why the spec or its profile cannot be worked on.

    Runs that exist continue meanwhile, so that how they end and what they cost is written as ever, and a stop request
    too.

    Args:
        observed: with the stored status.
        refusal: of the spec or of its profile.
        reported: the ledger after everything that the runs report; None before the first run.
    """
    conditions = refusal_conditions(refusal.reason, refusal.message, is_suspended=observed.is_suspended)
    stored = observed.status
    if reported is not None:
        stored = _with_runs(observed, reported)
    return stored.with_values(
        observed_generation=observed.generation,
        phase=api.PHASE_STALLED,
        conditions=_set_conditions(observed, conditions),
        digests=(stored.digests or Digests()).with_values(owner=_owner(observed)),
    )


def _with_runs(observed: Observed, ledger: Ledger) -> DomainAdaptationStatus:
    """Return the stored status with this ledger and what follows from it alone, whatever the spec says."""
    stored = observed.status
    if observed.is_suspended:
        ledger = request_stop(ledger, observed.live, observed.now)
    ledger = note_running(ledger, observed.live, observed.now, is_written=False)
    used_seconds = gpu_hours.used_seconds(ledger, observed.runs, observed.now)
    progress_status, progress_time = progress(observed, ledger)
    return stored.with_values(
        ledger=ledger.with_progress_time(progress_time),
        progress=progress_status,
        frozen=blocks.frozen_blocks(ledger),
        stages=tuple(blocks.stage_status(record, observed) for record in ledger.runs)[-MAX_STAGES:],
        usage=blocks.usage(
            observed,
            ledger,
            used_seconds,
            progress_status,
            is_progress_new=progress_time != ledger.progress_time,
        ),
    )


def working_status(
    observed: Observed,
    inputs: ChainInputs,
    ledger: Ledger,
    position: Position,
    run: StageRun | None,
    used_seconds: float,
) -> DomainAdaptationStatus:
    """Return the status of an adaptation that is worked on.

    Args:
        observed: with the stored status.
        inputs: what the position was found from.
        ledger: as it is after this reconcile.
        position: in the chain.
        run: the run of the chain that this reconcile starts.
        used_seconds: accelerator-seconds so far.
    """
    ledger = note_running(ledger, observed.live, observed.now, is_written=False)
    spec, old_digests = inputs.spec, observed.status.digests
    chosen = position.choice.candidate if isinstance(position.choice, Selected) else None
    newest_checkpoint = next((c for c in reversed(position.candidates) if c.step is not None), None)
    forgetting, gained = _compared_with_base(inputs, position, chosen or newest_checkpoint)
    progress_status, progress_time = progress(observed, ledger)
    progress_status = with_forecast(progress_status, observed, spec, position)
    has_pretraining = any(record.kind == "pretrain" for record in ledger.runs)
    status = DomainAdaptationStatus(
        observed_generation=observed.generation,
        phase=_phase(position),
        conditions=_set_conditions(observed, chain_conditions(observed, inputs, position, run)),
        forgetting=forgetting,
        gain=gained,
        gates=candidate_rows.gate_results(position),
        task_drop_points=candidate_rows.task_drop_points(position),
        attempt=ledger.attempt if has_pretraining else None,
        progress=progress_status,
        preflight=preflight(observed),
        resolved=blocks.resolved_values(inputs, position),
        frozen=blocks.frozen_blocks(ledger),
        digests=Digests(
            profile=inputs.desired.profile_digest,
            config=run.stage_file.config_digest if run else (old_digests.config if old_digests else None),
            owner=_owner(observed),
            run=run_digest(spec),
            blocks=block_digests(spec) if position.action in (Action.FINISH, Action.END) else {},
        ),
        plan=blocks.plan_summary(inputs, position),
        stages=tuple(blocks.stage_status(record, observed) for record in ledger.runs)[-MAX_STAGES:],
        candidates=candidate_rows.candidate_statuses(inputs, position, chosen),
        selected=candidate_rows.selected_status(position),
        attempts=blocks.attempt_statuses(inputs, position, ledger),
        usage=blocks.usage(
            observed,
            ledger,
            used_seconds,
            progress_status,
            is_progress_new=progress_time != ledger.progress_time,
            profile=inputs.profile,
        ),
        output=_output(inputs, ledger, chosen),
        ledger=ledger.with_progress_time(progress_time),
    )
    has_ended = is_true(status.conditions, api.FINISHED)
    return reduce_to_tables(status) if has_ended and not observed.is_local else status


def with_running_hours(observed: Observed, status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    """Return a status that is about to be written with how long its running runs have run until now.

    In a status that is compared with the stored one these numbers stay as they are: by themselves they are no reason to
    write it.
    """
    if status.ledger is None:
        return status
    ledger = note_running(status.ledger, observed.live, observed.now, is_written=True)
    if ledger is status.ledger:
        return status
    hours = round(gpu_hours.used_seconds(ledger, observed.runs, observed.now) / 3600, 4)
    return status.with_values(ledger=ledger, usage=(status.usage or Usage()).with_values(gpu_hours=hours))


def finished_status(observed: Observed, cleaned: datetime | None) -> DomainAdaptationStatus:
    """Return the status after the end.

    Only the observed generation, when cleanup was done, and what the end says of an edited spec change any more. In a
    cluster it is reduced to its tables, once.
    """
    status = observed.status
    if status.observed_generation != observed.generation:
        spec = observed.desired.spec
        conditions = tuple(
            condition.with_values(
                observed_generation=observed.generation,
                message=message_about_edits(condition.message, status, spec)
                if condition.type == api.FINISHED
                else condition.message,
            )
            for condition in status.conditions
        )
        status = status.with_values(observed_generation=observed.generation, conditions=conditions)
    healed = healed_conditions(status.conditions, observed.now)
    if healed is not status.conditions:
        status = status.with_values(conditions=healed)
    if not observed.is_local:
        status = reduce_to_tables(status)
    if cleaned is not None:
        status = status.with_values(ledger=(status.ledger or Ledger()).cleaned_at(timestamp(cleaned)))
    return status


def _compared_with_base(
    inputs: ChainInputs, position: Position, candidate: Candidate | None
) -> tuple[float | None, float | None]:
    """Return forgetting and gain of a candidate; None without one."""
    base = position.facts.base
    if candidate is None or base is None:
        return None, None
    forgetting = perplexity.increase(base.general, candidate.measure.general, "both")
    gained = gain(inputs.spec.selection.weights, base, candidate.measure, "both")
    return candidate_rows.rounded(forgetting), candidate_rows.rounded(gained)


def _output(inputs: ChainInputs, ledger: Ledger, chosen: Candidate | None) -> OutputStatus | None:
    published = ledger.facts(PublishFacts, "publish", chosen.attempt, chosen.id) if chosen else None
    if published is None:
        return None
    return OutputStatus(
        # The spec's, which is what the run was started with: people load the model from the place that stands here, and
        # a pod could report another one.
        destination=inputs.spec.output.destination,
        digest=published.digest,
        deployable=inputs.spec.finetuning is not None or inputs.spec.preference is not None,
    )


def _owner(observed: Observed) -> str | None:
    """Return the operator installation that works on the adaptation: the first that wrote a status."""
    return (observed.status.digests.owner if observed.status.digests else None) or observed.instance or None


def _phase(position: Position) -> str:
    if position.action is Action.STALL:
        return api.PHASE_STALLED
    if position.action is Action.END:
        return api.PHASE_BUDGET_EXHAUSTED
    if position.action in (Action.HOLD, Action.STOP):
        return api.PHASE_SUSPENDED
    if position.is_ending and position.state is State.PUBLISHED:
        return api.PHASE_PUBLISHING
    return PHASE_OF_STATE[position.state]


def _set_conditions(observed: Observed, values: dict[str, ConditionValue]) -> tuple[Condition, ...]:
    """Return the stored conditions with these values; the time of an unchanged one stays."""
    conditions = observed.status.conditions
    for type_ in api.CONDITION_TYPES:
        value = values[type_]
        conditions = set_condition(
            conditions,
            type_,
            value.status,
            value.reason,
            value.message,
            now=observed.now,
            observed_generation=observed.generation,
        )
    return conditions
