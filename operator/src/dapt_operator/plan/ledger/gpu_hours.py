"""Accelerator-hours: what was used, what is left, and how long a run may take. A profile of kind cpu uses none."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from dapt_contract.failure import Cause
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.ledger.records import accelerator_seconds, find
from dapt_operator.plan.sizing.resolve import RankLayout
from dapt_operator.stage_run import RunPhase, RunResources, RunState

SHORTEST_DEADLINE_SECONDS = 60


def used_seconds(ledger: Ledger, runs: Iterable[RunState], now: datetime) -> float:
    """Accelerator-seconds of every try that has ended, and of those that run."""
    ended = ended_seconds(ledger)
    live = (RunPhase.PENDING, RunPhase.RUNNING)
    return ended + sum(accelerator_seconds(run, now) for run in runs if run.phase in live)


def ended_seconds(ledger: Ledger) -> float:
    """Accelerator-seconds of every try that has ended, those whose records were let go included."""
    gone = sum(ledger.closed.accelerator_seconds.values()) if ledger.closed is not None else 0.0
    return gone + sum(record.accelerator_seconds for record in ledger.runs)


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


def is_spent(left_seconds: float | None, record: RunRecord | None) -> bool:
    """Whether no further accelerator run may start: the limit is used up, or a deadline made of it has struck."""
    if left_seconds is None:
        return False
    return left_seconds <= 0 or (record is not None and record.cause == Cause.DEADLINE)


def pretraining_seconds(
    spec: DomainAdaptationSpec,
    ledger: Ledger,
    gang: RankLayout,
    left_seconds: float | None,
    record: RunRecord | None,
) -> float | None:
    """Pretraining's share of the limit, in seconds of training on the clock since the attempt began.

    What is left, minus what the later stages are expected to take, plus what earlier tries of this attempt took (the
    trainer counts its time over all tries). None without a limit.
    """
    held = gang.nodes * gang.accelerators_per_node
    if left_seconds is None or held == 0:
        return None
    share = max(0.0, left_seconds - reserved_seconds(spec, ledger))
    before = record.accelerator_seconds if record is not None else 0.0
    return round(max(float(SHORTEST_DEADLINE_SECONDS), (share + before) / held), 1)


def reserved_seconds(spec: DomainAdaptationSpec, ledger: Ledger) -> float:
    """Accelerator-seconds kept for all that comes beside and after an attempt.

    One evaluation costs about what the base model's measure cost, the perplexities of a blend no more; verification
    also lets three models answer, so it counts twice. Fine-tuning and preference tuning, one node each, are given as
    much as one evaluation and the verification: their data is small.
    """
    baseline = find(ledger, "baseline", 1, None)
    one = baseline.accelerator_seconds if baseline is not None else 0.0
    tuned = (spec.finetuning is not None) + (spec.preference is not None)
    shares = sum(share < 1.0 for share in spec.selection.interpolate)
    averages = int(spec.selection.average_last > 1)
    blends = averages + shares * (2 + averages)
    evaluations = 1
    if spec.evaluation.when != "end":
        evaluations = spec.pretraining.checkpoints.count + blends
    return one * (3.0 * (1 + tuned) + evaluations - 1 + blends)
