"""Accelerator-hours: what was used, what is left, and how long a run may take. A profile of kind cpu uses none."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from dapt_contract.pod.failure import Cause
from dapt_operator.api.v1alpha1.ledger import Ledger
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.run_record import RunRecord
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing.resolve import RankLayout
from dapt_operator.stage_run import RunResources, RunState

SHORTEST_DEADLINE_SECONDS: Final = 60


def used_seconds(ledger: Ledger, runs: Iterable[RunState], now: datetime) -> float:
    """Return the accelerator-seconds of every run that has ended, and of those that run."""
    return ended_seconds(ledger) + sum(run.accelerator_seconds(now) for run in runs if run.is_live)


def ended_seconds(ledger: Ledger) -> float:
    """Return the accelerator-seconds of every run that has ended, those of dropped records included."""
    dropped = sum(ledger.closed.accelerator_seconds.values()) if ledger.closed is not None else 0.0
    return dropped + sum(record.accelerator_seconds for record in ledger.runs)


def limit_seconds(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> float | None:
    """Return the lower of the spec's and the profile's limit, in accelerator-seconds; None without a limit."""
    limits = [hours for hours in (spec.limits.gpu_hours, profile.limits.gpu_hours) if hours is not None]
    if not limits or profile.accelerator.kind == "cpu":
        return None
    return min(limits) * 3600.0


def deadline_seconds(resources: RunResources, left_seconds: float | None) -> int | None:
    """Return the active deadline of a Job in seconds on the clock, from what is left of the limit."""
    accelerators = resources.nodes * resources.accelerators_per_node
    if left_seconds is None or accelerators == 0:
        return None
    return max(SHORTEST_DEADLINE_SECONDS, int(left_seconds / accelerators))


def is_spent(left_seconds: float | None, record: RunRecord | None) -> bool:
    """Whether no further accelerator run may start: the limit is used up, or a deadline derived from it has struck."""
    if left_seconds is None:
        return False
    return left_seconds <= 0 or (record is not None and record.cause == Cause.DEADLINE)


def pretraining_seconds(
    spec: DomainAdaptationSpec,
    ledger: Ledger,
    layout: RankLayout,
    left_seconds: float | None,
    record: RunRecord | None,
) -> float | None:
    """Return pretraining's share of the limit, in seconds of training on the clock since the attempt began.

    What is left, minus what the later stages are expected to take, plus what earlier runs of this attempt took (the
    trainer counts its time over all runs). None without a limit.
    """
    accelerators = layout.nodes * layout.accelerators_per_node
    if left_seconds is None or accelerators == 0:
        return None
    share = max(0.0, left_seconds - reserved_seconds(spec, ledger))
    earlier = record.accelerator_seconds if record is not None else 0.0
    return round(max(float(SHORTEST_DEADLINE_SECONDS), (share + earlier) / accelerators), 1)


def reserved_seconds(spec: DomainAdaptationSpec, ledger: Ledger) -> float:
    """Return the accelerator-seconds kept for everything that runs alongside and after an attempt.

    One evaluation costs about what the base model's measure cost, the perplexities of a blend no more; verification
    also lets three models answer, so it counts twice. Fine-tuning and preference tuning, one node each, are given as
    much as one evaluation and the verification: their data is small.
    """
    baseline = ledger.find("baseline")
    evaluation_seconds = baseline.accelerator_seconds if baseline is not None else 0.0
    num_tunings = (spec.finetuning is not None) + (spec.preference is not None)
    num_shares = sum(share < 1.0 for share in spec.selection.interpolate)
    # As `blends` makes them: of each share two checkpoints and, where there is one, the average.
    num_averages = int(spec.selection.average_last > 1)
    num_blends = num_averages + num_shares * (2 + num_averages)
    num_evaluations = 1
    if spec.evaluation.when != "end":
        num_evaluations = spec.pretraining.checkpoints.count + num_blends
    return evaluation_seconds * (3.0 * (1 + num_tunings) + num_evaluations - 1 + num_blends)
