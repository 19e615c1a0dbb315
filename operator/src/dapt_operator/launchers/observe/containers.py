"""Reads the state of the trainer's container, by which a pod is judged.

Whatever else runs in a pod (a mesh's proxy, a log shipper) starts and ends by rules of its own, and its exit code
counts in the pod's phase: one that never ends keeps a pod running, and one that is killed makes a finished pod fail.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from dapt_contract.sentences import shortened
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import MAX_QUOTE_CHARACTERS, Manifest

ENDED_PHASES: Final = ("Succeeded", "Failed")
"""Phases of a pod whose containers have all ended."""


def trainer_state(status: Manifest) -> Manifest:
    """Return the state of the trainer's container from a pod's status; empty before the kubelet has reported it."""
    for container in status.get("containerStatuses") or []:
        if container.get("name") == CONTAINER:
            state: Manifest = container.get("state") or {}
            return state
    return {}


def trainer_end(pod: Manifest) -> Manifest | None:
    """Return how the trainer of a pod ended; None while it has not, and where nobody reported it."""
    end: Manifest | None = trainer_state(pod.get("status") or {}).get("terminated")
    return end


def has_ended(pod: Manifest) -> bool:
    """Whether the trainer of a pod has ended, or the pod as a whole: no process of ours runs in it."""
    return trainer_end(pod) is not None or is_over(pod)


def is_over(pod: Manifest) -> bool:
    """Whether all containers of a pod have ended."""
    return (pod.get("status") or {}).get("phase") in ENDED_PHASES


def phase_of(status: Manifest) -> str:
    """Return the phase that a pod would have if the trainer were its only container."""
    state, phase = trainer_state(status), str(status.get("phase") or "Pending")
    if (end := state.get("terminated")) is not None:
        return "Succeeded" if exit_code_of(end) == 0 else "Failed"
    if phase in ENDED_PHASES:
        return phase  # evicted, or refused by its node: the pod ended before its trainer could
    if "running" in state:
        return "Running"
    return "Pending" if "waiting" in state else phase


def exit_code_of(end: Manifest) -> int:
    """Return the exit code of a terminated container; 1 where it has none."""
    return int(end.get("exitCode", 1))


def failed_init_sentence(status: Manifest) -> str:
    """Return which init container ended a pod, in one sentence; empty when none did."""
    for container in status.get("initContainerStatuses") or []:
        end = (container.get("state") or {}).get("terminated")
        if end is not None and exit_code_of(end) != 0:
            detail = shortened(str(end.get("message") or end.get("reason") or ""), MAX_QUOTE_CHARACTERS)
            name = str(container.get("name") or "")[:63]
            return f"init container {name} ended with exit code {exit_code_of(end)}" + (
                f": {detail}" if detail else ""
            )
    return ""


def parse_time(value: str | datetime | None) -> datetime | None:
    """Return a time in Kubernetes' RFC 3339 as an aware one; None for anything else."""
    if not value:
        return None
    try:
        time = (
            value
            if isinstance(value, datetime)
            else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        )
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
