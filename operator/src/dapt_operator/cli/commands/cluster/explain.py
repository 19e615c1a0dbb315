"""`dapt explain` says in sentences what an adaptation does or waits for, why, and what its user can do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dapt_client.access import ClusterAccess
from dapt_client.next_steps import next_step
from dapt_client.resources import is_outdated, status_of
from dapt_operator.api import names
from dapt_operator.api.v1alpha1.conditions import (
    FINISHED,
    PUBLISHED,
    RECONCILING,
    STALLED,
    SUSPENDED,
    find_condition,
)
from dapt_operator.api.v1alpha1.status import Condition, DomainAdaptationStatus
from dapt_operator.cli.commands.cluster.overview import NOT_SEEN
from dapt_operator.cli.display.stage_rows import stage_title
from dapt_operator.launchers.observe.pod_waiting import waiting_sentence
from dapt_operator.stage_run import JsonObject, Manifest

_MAX_EVENTS: Final = 5
_MAX_PODS: Final = 5


def explain(access: ClusterAccess, name: str) -> list[str]:
    """Return the sentences, the most important first.

    Raises:
        UserError: there is no such adaptation, or it cannot be read.
    """
    resource = access.adaptation(name)
    status, title = status_of(resource), f"{access.namespace}/{name}"
    condition = _decisive(status)
    if condition is None:
        return [f"{title}: {NOT_SEEN}"]
    lines = [f"{title}: {_state(condition)}", f"  why:  {condition.reason}: {condition.message}"]
    if is_outdated(resource, status):
        lines.append("  note: the spec was changed since, and the operator has not reconciled it yet")
    if step := next_step(condition.reason):
        lines.append(f"  next: {step}")
    sections = (
        ("Attempts that were given up", _ended_attempts(status)),
        ("Failed stages", _failed_stages(status)),
        ("Slow ranks", _slow_ranks(status)),
        ("Pods that wait", _waiting_pods(access.pods(resource))),
        ("Last warnings", _warnings(access, name)),
    )
    for heading, found in sections:
        if found:
            lines += ["", heading, *(f"  - {line}" for line in found)]
    return lines


def _decisive(status: DomainAdaptationStatus) -> Condition | None:
    """Return the condition that decides what happens next; None before the first reconcile."""
    for type_ in (STALLED, SUSPENDED, FINISHED):
        condition = find_condition(status.conditions, type_)
        if condition is not None and condition.status == "True":
            return condition
    return find_condition(status.conditions, RECONCILING)


def _state(condition: Condition) -> str:
    match condition.type:
        case "Stalled":
            return f"user action is required (since {condition.last_transition_time})"
        case "Suspended":
            return f"suspended (since {condition.last_transition_time})"
        case "Finished":
            return "finished" if condition.reason == PUBLISHED else "ended without a published model"
    return "in progress" if condition.status == "True" else "nothing to do"


def _ended_attempts(status: DomainAdaptationStatus) -> list[str]:
    return [
        f"attempt {attempt.number}: {attempt.ended_by}{f': {attempt.reason}' if attempt.reason else ''}"
        for attempt in status.attempts
        if attempt.ended_by and attempt.number != status.attempt
    ]


def _failed_stages(status: DomainAdaptationStatus) -> list[str]:
    lines = []
    for stage in status.stages:
        if stage.state == "Failed":
            cause = ": ".join(part for part in (stage.reason, stage.message) if part)
            lines.append(f"{stage_title(stage)}: {cause or 'no cause was reported'}")
            lines += [f"    {line}" for line in stage.last_log_lines]
    return lines


def _slow_ranks(status: DomainAdaptationStatus) -> list[str]:
    """Return the ranks that their peers wait for, with what to look at."""
    reached = [(stage, stage.progress) for stage in status.stages if stage.state == "Running"]
    found = [
        (stage, status.progress if stage.kind == "pretrain" else progress) for stage, progress in reached
    ]
    return [
        f"{stage_title(stage)}: {progress.slow_rank}; look at the load, the clock rates and the disk of that node"
        for stage, progress in found
        if progress is not None and progress.slow_rank
    ]


def _waiting_pods(pods: list[JsonObject]) -> list[str]:
    return [
        f"{pod['metadata']['name']} ({_stage(pod)}): {sentence}"
        for pod in pods
        if (pod.get("status") or {}).get("phase") == "Pending"
        and (sentence := waiting_sentence(pod.get("status") or {}))
    ][:_MAX_PODS]


def _stage(pod: Manifest) -> str:
    return str((pod["metadata"].get("labels") or {}).get(names.LABEL_KIND, "?"))


def _warnings(access: ClusterAccess, name: str) -> list[str]:
    return list(dict.fromkeys(_warning_texts(access.events("DomainAdaptation", name))))[-_MAX_EVENTS:]


def _warning_texts(events: list[JsonObject]) -> Iterator[str]:
    for event in events:
        if event.get("type") == "Warning":
            yield f"{event.get('reason')}: {event.get('message')}"
