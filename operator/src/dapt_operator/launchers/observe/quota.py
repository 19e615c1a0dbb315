"""What a queue says about a run, from Kueue's Workload.

Kueue 0.14 writes `QuotaReserved=False` with reason `Pending` both for "wait" and for "can never fit"; the message
tells them apart (pkg/scheduler/flavorassigner and pkg/controller/core of its module, whose sentences the tests hold):

    couldn't assign flavors to pod set n: REASON, REASON, ...; couldn't assign flavors to pod set ...

A flavor that only lacks unused quota will have it some day. When no flavor is of that sort and one says that the
request is larger than all it has, the run can never be admitted as things stand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from dapt_operator.launchers.labels import QUEUE_LABEL
from dapt_operator.stage_run import Manifest, Quota

NOT_SEEN: Final = "the queue has not taken it up yet; this takes Kueue in the cluster"
NOT_REACHED: Final = (
    "the queue has not come to it yet: a queue of strict order serves what is before it first"
)
CHECKS: Final = "quota is reserved, the queue's admission checks are not done yet"
MAX_SENTENCE: Final = 1000

_WAITS_IN = re.compile(r"insufficient unused quota for \S+ in flavor ([^\s,;]+)")
_NEVER_IN = re.compile(r"insufficient quota for \S+ in flavor ([^\s,;]+),[^;]*?> maximum capacity")
_NEVER_FLAVOR = re.compile(
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


def quota_of(
    labels: Mapping[str, Any], *, suspended: bool, workload: Manifest | None
) -> tuple[Quota | None, str]:
    """Where a queued Job or JobSet stands, and the queue's own sentence; None without a queue.

    Args:
        labels: of the Job or JobSet.
        suspended: its `spec.suspend`, which the queue alone takes back.
        workload: what the queue made of it; None when it made nothing, or nobody looked.
    """
    if QUEUE_LABEL not in labels:
        return None, ""
    if not suspended:
        return Quota.GRANTED, ""
    if workload is None:
        return Quota.WAITING, NOT_SEEN
    if (workload.get("spec") or {}).get("active") is False:
        name = (workload.get("metadata") or {}).get("name", "")
        return Quota.NEVER, f"Workload {name} was deactivated: set its spec.active to true again"
    conditions = {item.get("type"): item for item in (workload.get("status") or {}).get("conditions") or []}
    if "QuotaReserved" not in conditions:
        return Quota.WAITING, NOT_REACHED
    reserved: Mapping[str, Any] = conditions["QuotaReserved"]
    if reserved.get("status") == "True":
        return Quota.WAITING, CHECKS
    message = str(reserved.get("message") or "")[:MAX_SENTENCE]
    return (Quota.NEVER if _is_hopeless(message) else Quota.WAITING), message


def _is_hopeless(message: str) -> bool:
    """Whether waiting cannot help, by Kueue's sentence; False for one that is not known."""
    if any(pattern.search(message) for pattern in _NEVER):
        return True
    never = set(_NEVER_IN.findall(message))
    never |= {name for pair in _NEVER_FLAVOR.findall(message) for name in pair if name}
    return bool(never) and not set(_WAITS_IN.findall(message)) - never
