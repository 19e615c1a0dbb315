"""What the conditions say: status, reason and one sentence each, as kstatus wants them."""

from __future__ import annotations

from typing import Final

from dapt_operator.api.v1alpha1 import conditions as words
from dapt_operator.api.v1alpha1.conditions import ConditionStatus, find_condition
from dapt_operator.plan.assess import ChainInputs, StageAssessment
from dapt_operator.plan.chain import Position
from dapt_operator.plan.ledger.records import find_state, lineage_of
from dapt_operator.plan.observed import Observed
from dapt_operator.plan.selection import choose
from dapt_operator.plan.stages.attempts import rollback_sentence
from dapt_operator.plan.status import conditions
from dapt_operator.plan.transitions import Do, Fact, State
from dapt_operator.plan.waiting import steady, waits_for
from dapt_operator.stage_run import Quota, RunPhase, RunState, StageRun

ConditionValue = tuple[ConditionStatus, str, str]
"""Status, reason and message of a condition."""

NOBODY: ConditionValue = ("False", words.PROGRESSING, "nothing waits for a person")


def refused(reason: str, message: str, *, suspended: bool) -> dict[str, ConditionValue]:
    """For a spec or profile that cannot be worked with."""
    return {
        words.ACCEPTED: ("False", reason, message),
        words.READY: ("False", words.PROGRESSING, "the model is not published"),
        words.RECONCILING: ("False", reason, "waits for the spec or the profile to change"),
        words.STALLED: ("True", reason, message),
        words.QUOTA_RESERVED: conditions.NO_QUEUE,
        words.GATES_PASSED: ("Unknown", words.GATES_NOT_JUDGED, "no candidate was judged"),
        words.SUSPENDED: _suspended(suspended),
        words.FINISHED: ("False", words.NOT_FINISHED, "there is still something to do"),
    }


def _suspended(suspended: bool) -> ConditionValue:
    if suspended:
        return "True", words.SUSPENDED_BY_USER, "spec.suspend is true"
    return "False", words.NOT_SUSPENDED, "spec.suspend is false"


def working(
    observed: Observed, situation: ChainInputs, reached: Position, run: StageRun | None
) -> dict[str, ConditionValue]:
    """For everything else; `run` is the run that this visit starts."""
    spec, look = situation.spec, reached.look
    state = find_state(observed.runs, look.record) if look.record is not None else None
    where = f"model published to {spec.output.destination}"
    sayings: dict[str, ConditionValue] = {
        words.ACCEPTED: ("True", words.PLANNED, "the spec and its profile fit together"),
        words.READY: ("False", words.PROGRESSING, "the model is not published"),
        words.RECONCILING: _reconciling(reached, run, state),
        words.STALLED: NOBODY,
        words.QUOTA_RESERVED: conditions.reserved(spec.queue, state, run),
        words.GATES_PASSED: _gates(reached),
        words.SUSPENDED: _suspended(spec.suspend),
        words.FINISHED: ("False", words.NOT_FINISHED, "there is still something to do"),
    }
    if reached.do is Do.STALL:
        sayings[words.ACCEPTED] = (
            ("False", look.reason, look.message) if look.fact is Fact.REFUSED else sayings[words.ACCEPTED]
        )
        sayings[words.STALLED] = ("True", look.reason, _stalled(observed, look))
    if reached.do is Do.FINISH:
        sayings[words.READY] = ("True", words.PUBLISHED, where)
        sayings[words.FINISHED] = ("True", words.PUBLISHED, where)
    if reached.do is Do.END:
        message = _overspent(situation, reached)
        sayings[words.FINISHED] = ("True", words.BUDGET_EXHAUSTED, message)
        sayings[words.STALLED] = ("True", words.BUDGET_EXHAUSTED, message)
    return sayings


def _stalled(observed: Observed, look: StageAssessment) -> str:
    rollback_sentence = find_condition(observed.status.conditions, words.STALLED)
    if (
        rollback_sentence is None
        or rollback_sentence.status != "True"
        or rollback_sentence.reason != look.reason
    ):
        return look.message
    return steady(look.message, rollback_sentence.message)


def _reconciling(reached: Position, run: StageRun | None, state: RunState | None) -> ConditionValue:
    look = reached.look
    if run is not None:
        return _starting(_title(run.identity.stage, run.identity.candidate), run.identity.try_number)
    if reached.do is Do.WAIT and look.record is not None:
        title = _title(look.record.stage, look.record.candidate)
        if look.fact is Fact.BACKOFF:
            return (
                "True",
                words.RETRYING,
                f"{title} failed ({look.record.cause}) and is tried again at {look.record.not_before}",
            )
        if state is not None and state.phase is RunPhase.PENDING:
            if state.quota is Quota.WAITING:
                said = state.quota_message or "it has not said anything yet"
                return "True", words.WAITING_FOR_QUOTA, f"{title} waits for quota: {said}"[:4096]
            if waiting := waits_for(state):
                return "True", words.WAITING_FOR_NODES, f"{title} waits: {waiting}"[:4096]
            return _starting(title, look.record.try_number)
        beside = len(reached.companions - {lineage_of(look.record)})
        many = "1 evaluation runs" if beside == 1 else f"{beside} evaluations run"
        return "True", words.STAGE_RUNNING, f"{title} is running{f'; {many} beside it' if beside else ''}"
    if reached.do is Do.ROLL_BACK:
        assert reached.retreat is not None
        return "True", words.ROLLING_BACK, rollback_sentence(reached.retreat)
    if reached.do in (Do.STOP, Do.CLEAR):
        return "True", words.STOPPING, "running processes were asked to save and stop"
    if reached.do is Do.HOLD:
        return "False", words.SUSPENDED_BY_USER, "spec.suspend is true"
    if reached.do is Do.FINISH:
        return "False", words.PUBLISHED, "there is nothing left to do"
    return "False", look.reason or words.BUDGET_EXHAUSTED, "waits for a person"


def _starting(title: str, try_number: int) -> ConditionValue:
    if try_number == 1:
        return "True", words.STAGE_STARTING, f"{title} is starting"
    return "True", words.RETRYING, f"{title} is starting again (try {try_number})"


def _gates(reached: Position) -> ConditionValue:
    if isinstance(reached.choice, choose.Selected):
        failed = [v.message for v in (*reached.choice.candidate.verdicts, *reached.verdicts) if not v.passed]
        if reached.state is State.VERIFY and reached.do is Do.STALL:
            return "False", words.VERIFY_FAILED, reached.look.message
        if failed:
            return "False", words.PASSED_WITH_WARNINGS, "; ".join(failed)
        rollback_sentence = "; ".join(verdict.message for verdict in reached.choice.candidate.verdicts)
        return "True", words.ALL_GATES_PASSED, rollback_sentence
    if isinstance(reached.choice, choose.Breached):
        return "False", reached.choice.reason, reached.choice.message
    return "Unknown", words.GATES_NOT_JUDGED, "no candidate was judged"


def _overspent(situation: ChainInputs, reached: Position) -> str:
    spec, profile = situation.spec, situation.profile
    hours = [h for h in (spec.limits.gpu_hours, profile.limits.gpu_hours) if h is not None]
    kept = ""
    if isinstance(reached.choice, choose.Selected | choose.NeedsMeasure):
        kept = f"; the best candidate {reached.choice.candidate.id} is kept"
    stage = reached.look.stage.stage if reached.look.stage else "the next stage"
    return f"limits.gpuHours of {min(hours):g} is used up before {stage}{kept}"


def _title(stage: str, candidate: str | None) -> str:
    return f"{stage} of {candidate}" if candidate else stage


MAX_MESSAGE = 4096
NO_QUEUE: Final[tuple[ConditionStatus, str, str]] = ("Unknown", words.NO_QUEUE, "no queue is asked for")


def reserved(
    queue: str | None, state: RunState | None, run: StageRun | None
) -> tuple[ConditionStatus, str, str]:
    """Status, reason and sentence.

    Args:
        queue: of the spec, for the runs to come.
        state: the newest try of the stage that was reached, as it is; None when nothing of it is there.
        run: the run that this visit starts.
    """
    if run is not None:
        if run.queue is None:
            return NO_QUEUE
        return "False", words.WAITING_FOR_QUOTA, f"{run.identity.stage} was put into queue {run.queue}"
    if state is not None and state.is_live and state.quota is not None:
        return _said(state)
    if queue is None or (state is not None and state.is_live):
        return NO_QUEUE
    return "False", words.NOTHING_RUNNING, f"nothing runs, so nothing is held of queue {queue}"


def _said(state: RunState) -> tuple[ConditionStatus, str, str]:
    stage = state.identity.stage
    if state.quota is Quota.GRANTED:
        return "True", words.QUOTA_GRANTED, f"the queue has granted what {stage} asks for"
    if state.quota is Quota.NEVER:
        said = state.quota_message or "it gives no reason"
        return (
            "False",
            words.QUOTA_TOO_SMALL,
            f"the queue cannot grant what {stage} asks for: {said}"[:MAX_MESSAGE],
        )
    said = state.quota_message or "it has not said anything yet"
    return "False", words.WAITING_FOR_QUOTA, f"{stage} waits for quota: {said}"[:MAX_MESSAGE]
