"""What a run waits for, in words: what a person must do, how long a node may take, what the queue says."""

from __future__ import annotations

from datetime import datetime, timedelta

from dapt_operator.api.v1alpha1.conditions import QUOTA_TOO_SMALL, TAMPERED
from dapt_operator.stage_run import Quota, RunPhase, RunState

MAX_MESSAGE = 4096
STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of a pod that is about to run: nothing to tell anybody."""


def hindrance(run: RunState, stage: str, queue: str | None) -> tuple[str, str]:
    """Reason and sentence of what only a person can settle; two empty strings when nothing is known."""
    if run.tampering:
        return TAMPERED, f"{stage}: {run.tampering}"[:MAX_MESSAGE]
    if run.phase is not RunPhase.PENDING:
        return "", ""
    if run.hindrance is not None:
        return run.hindrance.reason, f"{stage} cannot start: {run.hindrance.message}"[:MAX_MESSAGE]
    if run.quota is Quota.NEVER:
        named = f"queue {queue}" if queue else "its queue"
        return QUOTA_TOO_SMALL, (
            f"{stage} cannot be admitted by {named}: {run.quota_message or 'it gives no reason'}; ask for less in"
            " resources, name another queue, or have its quota raised"
        )[:MAX_MESSAGE]
    return "", ""


def steady(message: str, told: str) -> str:
    """What was told before, when the new sentence differs only from its first bracket on.

    The kubelet words one and the same failure to pull an image in two ways, by turns: that is no news.
    """
    return told if message.partition(" (")[0] == told.partition(" (")[0] else message


def overdue(run: RunState, stage: str, now: datetime, limit_seconds: int | None) -> str:
    """The sentence about a run that has waited longer than the profile's pendingTimeoutSeconds; else empty."""
    if run.phase is not RunPhase.PENDING or limit_seconds is None or run.created is None:
        return ""
    if now - run.created <= timedelta(seconds=limit_seconds):
        return ""
    what = "quota" if run.quota is Quota.WAITING else "a node"
    return (
        f"{stage} waits for {what} for more than {limit_seconds} s (pendingTimeoutSeconds):"
        f" {run.message or 'no reason was given'}; make room, or change resources"
    )[:MAX_MESSAGE]


def waits_for(run: RunState) -> str:
    """Why a pending run waits, as its pods or its queue say it; empty when it is just starting."""
    if run.phase is not RunPhase.PENDING or run.waiting_reason in STARTING:
        return ""
    if run.hindrance is not None:
        return run.hindrance.reason  # the kubelet's own words change at each of its tries
    return run.message or run.waiting_reason
