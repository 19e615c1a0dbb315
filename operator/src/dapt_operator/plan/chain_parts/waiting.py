"""Why a run waits: required user action, a node that does not come, what the queue or the pods report."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.base import MAX_MESSAGE
from dapt_operator.api.v1alpha1.conditions import QUOTA_TOO_SMALL, TAMPERED
from dapt_operator.api.v1alpha1.stored.run_record import StageKey
from dapt_operator.stage_run import Quota, RunState

STARTING: Final = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of a pod that is about to run: nothing to report."""


def hindrance(run: RunState, stage: str, queue: str | None) -> tuple[str, str]:
    """Return reason and message of what requires user action; two empty strings when nothing does."""
    stage = StageKey(stage).shown_stage
    if run.tampering:
        return TAMPERED, shortened(f"{stage}: {run.tampering}", MAX_MESSAGE)
    if not run.is_waiting:
        return "", ""
    if run.hindrance is not None:
        message = f"{stage} cannot start: {run.hindrance.message}"
        return run.hindrance.reason, shortened(message, MAX_MESSAGE)
    if run.quota is Quota.NEVER:
        named = f"queue {queue}" if queue else "its queue"
        message = (
            f"{stage} cannot be admitted by {named}: {run.quota_message or 'it gives no reason'}; ask for less in"
            " resources, name another queue, or have its quota raised"
        )
        return QUOTA_TOO_SMALL, shortened(message, MAX_MESSAGE)
    return "", ""


def steady(message: str, reported: str) -> str:
    """Return the message reported before, when the new one differs only from its first bracket on.

    The kubelet alternates between two texts for one and the same failure to pull an image: that is no news, and each
    change would be one more write of the status.
    """
    return reported if message.partition(" (")[0] == reported.partition(" (")[0] else message


def overdue(run: RunState, stage: str, now: datetime, limit_seconds: int | None) -> str:
    """Return the message about a run that has waited longer than the profile's pendingTimeoutSeconds; else empty.

    A gang of which only a part runs waits too, and holds what its running pods hold: it counts from the creation of the
    first pod that has not started.
    """
    since = run.waiting_since if run.is_partly_running else run.created
    if not run.is_waiting or limit_seconds is None or since is None:
        return ""
    if now - since <= timedelta(seconds=limit_seconds):
        return ""
    stage = StageKey(stage).shown_stage
    awaited = "quota" if run.quota is Quota.WAITING else "a node"
    if run.is_partly_running:
        awaited = "the rest of its pods"
    message = (
        f"{stage} waits for {awaited} for more than {limit_seconds} s (pendingTimeoutSeconds):"
        f" {run.message or 'no reason was given'}; free capacity, or change resources"
    )
    return shortened(message, MAX_MESSAGE)


def waits_for(run: RunState) -> str:
    """Return why a run waits, as its pods or its queue report it; empty when it runs or is just starting."""
    if not run.is_waiting or run.waiting_reason in STARTING:
        return ""
    if run.hindrance is not None:
        # The kubelet's own text changes with each of its attempts; the reason does not.
        return run.hindrance.reason
    return run.message or run.waiting_reason
