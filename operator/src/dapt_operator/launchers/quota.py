"""What a queue says about a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dapt_operator.api.run import Manifest, Quota

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def quota_of(
    labels: Mapping[str, Any], *, suspended: bool, workload: Manifest | None
) -> tuple[Quota | None, str]:
    """Where a queued Job or JobSet stands, and the queue's own sentence; None without a queue."""
    if QUEUE_LABEL not in labels:
        return None, ""
    if not suspended:
        return Quota.GRANTED, ""
    conditions = ((workload or {}).get("status") or {}).get("conditions") or []
    said: Mapping[str, Any] = next((item for item in conditions if item.get("type") == "QuotaReserved"), {})
    return Quota.WAITING, str(said.get("message") or "")
