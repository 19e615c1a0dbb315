"""The condition QuotaReserved: what the queue has granted to the run that is there."""

from __future__ import annotations

from typing import Final

from dapt_operator.api import conditions as words
from dapt_operator.api.conditions import ConditionStatus
from dapt_operator.api.run import Quota, RunState, StageRun

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
