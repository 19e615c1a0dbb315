"""Reads from Kueue's Workload whether a run has quota, waits for it, or can never get it.

Kueue 0.14 writes `QuotaReserved=False` with reason `Pending` both for "wait" and for "can never fit". Only the message
distinguishes them (pkg/scheduler/flavorassigner and pkg/controller/core of Kueue; the tests hold its messages):

    couldn't assign flavors to pod set n: REASON, REASON, ...; couldn't assign flavors to pod set ...

A flavor that lacks unused quota will have some later. When no flavor is in that state and at least one reports that
the request exceeds its maximum, the run can never be admitted without a change.
"""

from __future__ import annotations

import re
from typing import Final

from dapt_contract.sentences import shortened
from dapt_operator.launchers.labels import QUEUE_LABEL
from dapt_operator.stage_run import MAX_QUOTE_CHARACTERS, Manifest, Quota

NOT_SEEN: Final = "the queue has no Workload for it yet; install Kueue if the cluster does not have it"
NOT_REACHED: Final = (
    "the queue has not considered it yet: a queue of strict order admits the workloads before it first"
)
CHECKS: Final = "quota is reserved, the queue's admission checks are not done yet"

_MISSING_AMOUNT: Final = re.compile(r"(?<=[^\s,]), [0-9][0-9A-Za-z.]{0,30} more needed\b")
_WAITS_IN: Final = re.compile(r"insufficient unused quota for \S+ in flavor ([^\s,;]+)")
_NEVER_IN: Final = re.compile(r"insufficient quota for \S+ in flavor ([^\s,;]+),[^;]*?> maximum capacity")
_NEVER_FLAVOR: Final = re.compile(
    r"untolerated taint .{0,300}? in flavor ([^\s,;]+)|flavor ([^\s,;]+) doesn't match node affinity"
)
_NEVER: Final = (
    re.compile(r"resource \S+ unavailable in ClusterQueue"),
    re.compile(r"^LocalQueue \S+ doesn't exist"),
    re.compile(r"^ClusterQueue \S+ (doesn't exist|not found)"),
    re.compile(r"^Workload namespace doesn't match ClusterQueue selector"),
    re.compile(r"^resources validation failed"),
    re.compile(r"^resources didn't satisfy LimitRange constraints"),
)


def quota_of(labels: Manifest, *, suspended: bool, workload: Manifest | None) -> tuple[Quota | None, str]:
    """Return whether a queued Job or JobSet has quota, and the queue's message; None and no message without a queue.

    Args:
        labels: of the Job or JobSet.
        suspended: its `spec.suspend`, which only the queue resets.
        workload: Kueue's Workload of it; None when there is none or it was not read.
    """
    if QUEUE_LABEL not in labels:
        return None, ""
    if not suspended:
        return Quota.GRANTED, ""
    if workload is None:
        return Quota.WAITING, NOT_SEEN
    # Not falsy: where the field is absent Kueue takes it for true.
    if (workload.get("spec") or {}).get("active") is False:
        name = (workload.get("metadata") or {}).get("name", "")
        return Quota.NEVER, f"Workload {name} was deactivated: set its spec.active to true again"
    conditions = {item.get("type"): item for item in (workload.get("status") or {}).get("conditions") or []}
    if "QuotaReserved" not in conditions:
        return Quota.WAITING, NOT_REACHED
    reserved: Manifest = conditions["QuotaReserved"]
    if reserved.get("status") == "True":
        return Quota.WAITING, CHECKS
    # How much is missing changes with every workload of others, and each change would be a write of the status.
    message = shortened(_MISSING_AMOUNT.sub("", str(reserved.get("message") or "")), MAX_QUOTE_CHARACTERS)
    return (Quota.NEVER if _can_never_fit(message) else Quota.WAITING), message


def _can_never_fit(message: str) -> bool:
    """Whether waiting cannot help, according to Kueue's message; False for a message that is not recognized."""
    if any(pattern.search(message) for pattern in _NEVER):
        return True
    never = set(_NEVER_IN.findall(message))
    never |= {name for pair in _NEVER_FLAVOR.findall(message) for name in pair if name}
    # One flavor that may have quota later is enough to wait for.
    return bool(never) and not set(_WAITS_IN.findall(message)) - never
