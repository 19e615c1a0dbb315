"""Accelerator-hours: what was used, what is left, and how long a run may take. A profile of kind cpu uses none."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from dapt_operator.api.ledger import Ledger
from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.run import RunPhase, RunResources, RunState
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.plan.history import accelerator_seconds

SHORTEST_DEADLINE_SECONDS = 60


def used_seconds(ledger: Ledger, runs: Iterable[RunState], now: datetime) -> float:
    """Accelerator-seconds of every try that has ended, and of those that run."""
    ended = sum(record.accelerator_seconds for record in ledger.runs)
    live = (RunPhase.PENDING, RunPhase.RUNNING)
    return ended + sum(accelerator_seconds(run, now) for run in runs if run.phase in live)


def limit_seconds(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> float | None:
    """The lower of the spec's and the profile's limit, in accelerator-seconds; None when nothing limits."""
    limits = [hours for hours in (spec.limits.gpu_hours, profile.limits.gpu_hours) if hours is not None]
    if not limits or profile.accelerator.kind == "cpu":
        return None
    return min(limits) * 3600.0


def deadline_seconds(resources: RunResources, left_seconds: float | None) -> int | None:
    """Active deadline of a Job from what is left of the limit, in seconds on the clock."""
    held = resources.nodes * resources.accelerators_per_node
    if left_seconds is None or held == 0:
        return None
    return max(SHORTEST_DEADLINE_SECONDS, int(left_seconds / held))
