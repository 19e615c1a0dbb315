"""The value of every condition: status, reason and one sentence, as kstatus wants them."""

from __future__ import annotations

from typing import Final, NamedTuple

from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1 import conditions as api
from dapt_operator.api.v1alpha1.base import MAX_MESSAGE
from dapt_operator.api.v1alpha1.conditions import ConditionStatus, find_condition
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import StageKey
from dapt_operator.plan.chain_parts.assess import ChainInputs, StageAssessment
from dapt_operator.plan.chain_parts.position import Position
from dapt_operator.plan.chain_parts.waiting import steady, waits_for
from dapt_operator.plan.desired import NEW_KEY, loses_checkpoints, note_of_live_run
from dapt_operator.plan.observed import Observed, find_run
from dapt_operator.plan.selection.choose import Breached, NeedsMeasure, Selected
from dapt_operator.plan.stage_parts.attempts import rollback_sentence
from dapt_operator.plan.transitions import Action, Fact, State
from dapt_operator.stage_run import Quota, RunPhase, RunState, StageRun


class ConditionValue(NamedTuple):
    """What one condition says."""

    status: ConditionStatus
    reason: str
    message: str


NOT_STALLED: Final = ConditionValue("False", api.PROGRESSING, "no user action is required")
NOT_READY: Final = ConditionValue("False", api.PROGRESSING, "the model is not published")
NOT_FINISHED: Final = ConditionValue("False", api.NOT_FINISHED, "work is left to do")
NOT_JUDGED: Final = ConditionValue("Unknown", api.GATES_NOT_JUDGED, "no candidate was judged")
NO_QUEUE: Final = ConditionValue("Unknown", api.NO_QUEUE, "the spec names no queue")


def refusal_conditions(reason: str, message: str, *, is_suspended: bool) -> dict[str, ConditionValue]:
    """Return the conditions of a spec or profile that cannot be worked on."""
    return {
        api.ACCEPTED: ConditionValue("False", reason, message),
        api.READY: NOT_READY,
        api.RECONCILING: ConditionValue("False", reason, "waits for the spec or the profile to change"),
        api.STALLED: ConditionValue("True", reason, message),
        api.QUOTA_RESERVED: NO_QUEUE,
        api.GATES_PASSED: NOT_JUDGED,
        api.SUSPENDED: _suspended(is_suspended),
        api.FINISHED: NOT_FINISHED,
    }


def chain_conditions(
    observed: Observed, inputs: ChainInputs, position: Position, run: StageRun | None
) -> dict[str, ConditionValue]:
    """Return the conditions of a position in the chain; `run` is the run that this reconcile starts."""
    spec, assessment = inputs.spec, position.assessment
    state = find_run(observed.runs, assessment.record) if assessment.record is not None else None
    values = {
        api.ACCEPTED: ConditionValue("True", api.PLANNED, _accepted(inputs.ledger)),
        api.READY: NOT_READY,
        api.RECONCILING: _reconciling(observed, position, run, state),
        api.STALLED: NOT_STALLED,
        api.QUOTA_RESERVED: _quota_reserved(spec.queue, state, run),
        api.GATES_PASSED: _gates_passed(position),
        api.SUSPENDED: _suspended(spec.suspend),
        api.FINISHED: NOT_FINISHED,
    }
    if position.action is Action.STALL:
        if assessment.fact is Fact.REFUSED:
            values[api.ACCEPTED] = ConditionValue("False", assessment.reason, assessment.message)
        values[api.STALLED] = ConditionValue("True", assessment.reason, _stalled(observed, assessment))
    if position.action is Action.FINISH:
        message = f"model published to {spec.output.destination}"
        values[api.READY] = values[api.FINISHED] = ConditionValue("True", api.PUBLISHED, message)
    if position.action is Action.END:
        # Stalled too: whoever waits for a failure waits for that condition.
        message = _over_limit(inputs, position)
        values[api.FINISHED] = values[api.STALLED] = ConditionValue("True", api.BUDGET_EXHAUSTED, message)
    return values


def _accepted(ledger: Ledger) -> str:
    message = "the spec and its profile fit together"
    if not ledger.unreadable:
        return message
    parts = "; ".join(ledger.unreadable)
    unread = "parts of an earlier status could not be read, and what they recorded is done again where it is needed"
    return shortened(f"{message}; {unread}: {parts}", MAX_MESSAGE)


def run_title(stage: str, candidate: str | None) -> str:
    """Return how messages name a run: `prepare`, `evaluate of a1-s40`, `tuning data of instructions`."""
    key = StageKey(stage, candidate=candidate)
    return f"{key.shown_stage} of {key.shown_candidate}" if key.shown_candidate else key.shown_stage


def _suspended(is_suspended: bool) -> ConditionValue:
    if is_suspended:
        return ConditionValue("True", api.SUSPENDED_BY_USER, "spec.suspend is true")
    return ConditionValue("False", api.NOT_SUSPENDED, "spec.suspend is false")


def _stalled(observed: Observed, assessment: StageAssessment) -> str:
    """Return the message; the stored one where the new one says the same in other words."""
    stored = find_condition(observed.status.conditions, api.STALLED)
    if stored is None or stored.status != "True" or stored.reason != assessment.reason:
        return assessment.message
    return steady(assessment.message, stored.message)


def _reconciling(
    observed: Observed, position: Position, run: StageRun | None, state: RunState | None
) -> ConditionValue:
    assessment = position.assessment
    if run is not None:
        note = NEW_KEY if loses_checkpoints(observed, run.signs_checkpoints, assessment.record) else ""
        title = run_title(run.identity.stage, run.identity.candidate)
        return _with_note(_starting(title, run.identity.try_number), note)
    if position.action is Action.WAIT and assessment.record is not None:
        is_open = assessment.record.is_open
        note = note_of_live_run(observed, assessment.stage, assessment.record) if is_open else ""
        return _with_note(_waiting(position, state), note)
    if position.rollback is not None:
        return ConditionValue("True", api.ROLLING_BACK, rollback_sentence(position.rollback))
    if position.action in (Action.STOP, Action.CLEAR):
        return ConditionValue("True", api.STOPPING, "stop requested: running processes save and stop")
    if position.action is Action.HOLD:
        return ConditionValue("False", api.SUSPENDED_BY_USER, "spec.suspend is true")
    if position.action is Action.FINISH:
        return ConditionValue("False", api.PUBLISHED, "no work is left to do")
    return ConditionValue("False", assessment.reason or api.BUDGET_EXHAUSTED, "waits for user action")


def _waiting(position: Position, state: RunState | None) -> ConditionValue:
    """Return what a stage with a run, or between two runs, waits for."""
    record = position.assessment.record
    if record is None:
        return NOT_READY
    title = run_title(record.stage, record.candidate)
    if position.assessment.fact is Fact.BACKOFF:
        message = f"{title} failed ({record.cause}) and runs again at {record.not_before}"
        return ConditionValue("True", api.RETRYING, message)
    if state is not None and state.phase is RunPhase.PENDING:
        if state.quota is Quota.WAITING:
            return _waiting_for_quota("True", title, state)
        if reason := waits_for(state):
            return _waiting_for_nodes(title, reason)
        return _starting(title, record.try_number)
    if state is not None and (reason := waits_for(state)):
        return _waiting_for_nodes(title, reason)
    num_parallel = len(position.companions - {record.stage_key})
    evaluations = "1 evaluation runs" if num_parallel == 1 else f"{num_parallel} evaluations run"
    parallel = f"; {evaluations} in parallel" if num_parallel else ""
    return ConditionValue("True", api.STAGE_RUNNING, f"{title} is running{parallel}")


def _waiting_for_nodes(title: str, reason: str) -> ConditionValue:
    return ConditionValue("True", api.WAITING_FOR_NODES, shortened(f"{title} waits: {reason}", MAX_MESSAGE))


def _with_note(value: ConditionValue, note: str) -> ConditionValue:
    if not note:
        return value
    return value._replace(message=shortened(f"{value.message}; {note}", MAX_MESSAGE))


def _starting(title: str, number: int) -> ConditionValue:
    if number == 1:
        return ConditionValue("True", api.STAGE_STARTING, f"{title} is starting")
    return ConditionValue("True", api.RETRYING, f"{title} is starting again (run {number})")


def _gates_passed(position: Position) -> ConditionValue:
    choice = position.choice
    if isinstance(choice, Breached):
        return ConditionValue("False", choice.reason, choice.message)
    if not isinstance(choice, Selected):
        return NOT_JUDGED
    if position.state is State.VERIFY and position.action is Action.STALL:
        return ConditionValue("False", api.VERIFY_FAILED, position.assessment.message)
    verdicts = (*choice.candidate.verdicts, *position.verdicts)
    breaches = [verdict.message for verdict in verdicts if not verdict.passed]
    if not choice.passes and not breaches:
        # It was taken all the same although half A, or an evaluation that gave no result, does not let it pass.
        return ConditionValue("False", api.PASSED_WITH_WARNINGS, choice.reason)
    if breaches:
        return ConditionValue("False", api.PASSED_WITH_WARNINGS, "; ".join(breaches))
    messages = [verdict.message for verdict in choice.candidate.verdicts]
    return ConditionValue("True", api.ALL_GATES_PASSED, "; ".join(messages))


def _over_limit(inputs: ChainInputs, position: Position) -> str:
    hours = [h for h in (inputs.spec.limits.gpu_hours, inputs.profile.limits.gpu_hours) if h is not None]
    kept = ""
    if isinstance(position.choice, Selected | NeedsMeasure):
        kept = f"; the best candidate {position.choice.candidate.id} is kept"
    stage = position.assessment.stage.kind if position.assessment.stage else "the next stage"
    return f"limits.gpuHours of {min(hours):g} is used up before {stage}{kept}"


def _quota_reserved(queue: str | None, state: RunState | None, run: StageRun | None) -> ConditionValue:
    """Return whether the queue has granted what the stage asks for.

    Args:
        queue: of the spec, for the runs to come.
        state: the newest run of the stage of the position; None when none of its objects exists.
        run: the run that this reconcile starts.
    """
    if run is not None:
        if run.queue is None:
            return NO_QUEUE
        message = f"{run.identity.stage} was submitted to queue {run.queue}"
        return ConditionValue("False", api.WAITING_FOR_QUOTA, message)
    if state is not None and state.is_live and state.quota is not None:
        return _quota(state)
    # A run that was created before the spec named a queue runs without quota until its end.
    if queue is None or (state is not None and state.is_live):
        return NO_QUEUE
    return ConditionValue("False", api.NOTHING_RUNNING, f"nothing runs, so no quota of queue {queue} is held")


def _quota(state: RunState) -> ConditionValue:
    stage = state.identity.stage
    if state.quota is Quota.GRANTED:
        return ConditionValue("True", api.QUOTA_GRANTED, f"the queue has granted what {stage} asks for")
    if state.quota is Quota.NEVER:
        why = state.quota_message or "it gives no reason"
        message = f"the queue cannot grant what {stage} asks for: {why}"
        return ConditionValue("False", api.QUOTA_TOO_SMALL, shortened(message, MAX_MESSAGE))
    return _waiting_for_quota("False", stage, state)


def _waiting_for_quota(status: ConditionStatus, title: str, state: RunState) -> ConditionValue:
    why = state.quota_message or "the queue has given no reason yet"
    message = shortened(f"{title} waits for quota: {why}", MAX_MESSAGE)
    return ConditionValue(status, api.WAITING_FOR_QUOTA, message)
