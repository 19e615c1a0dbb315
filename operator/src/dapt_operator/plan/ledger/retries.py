"""What follows a failure: whether another run is due, when, and with what change.

Each cause has its own retry budget (docs/troubleshooting.md). Bad input gets no retry, unless stage.json was changed.
Out of memory gets one with half the micro-batch. A requested stop uses no retry. Nor does a disruption, but the profile
bounds how many follow each other without a new optimizer step, and the second of them is waited out. Infrastructure is
retried with backoff, but never three times without a new step. A hang has its own budget. The forgetting limit and
divergence are no faults: they are judged with the checkpoints so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from dapt_contract.pod.failure import ALTERED_STAGE_FILE, FOREIGN_KEY, Cause
from dapt_operator.api.schema.immutable import FREED_BY_FAILURE, START_OVER, blocks_frozen_by, blocks_read_by
from dapt_operator.api.v1alpha1.conditions import (
    BAD_INPUT,
    DIVERGED,
    NAME_TAKEN,
    OUT_OF_MEMORY,
    RETRIES_EXHAUSTED,
    TAMPERED,
    timestamp,
)
from dapt_operator.api.v1alpha1.profile import Retries
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord

FIRST_BACKOFF_SECONDS: Final = 10.0
LONGEST_BACKOFF_SECONDS: Final = 300.0
MAX_DOUBLINGS: Final = 10
MAX_FAILURES_WITHOUT_A_STEP: Final = 3
MAX_ALTERED: Final = 2
"""Retries after pods that found their stage.json changed, or a key of somebody else: once may be an accident, and a key
may have been made again while they were starting."""
FREE: Final = frozenset({Cause.DISRUPTION, Cause.STOPPED})
"""Causes that use no retry: something outside took the run away."""
JUDGED: Final = frozenset({Cause.FORGETTING_LIMIT, Cause.DIVERGED})
"""Causes that end an attempt of pretraining without being a fault."""
NEVER: Final = frozenset({Cause.BAD_INPUT})
"""Causes that a retry cannot cure."""
CAUSES: Final = frozenset(cause.value for cause in Cause)
MOST_RETRIES: Final = Retries(infrastructure=100, out_of_memory=10, hang=100, disruption=1000)
"""The most that a profile may allow: where none is known, the next failure decides whether a stage has used them up."""
TRAINS: Final = frozenset({"pretrain", "finetune", "align"})
"""Kinds of stage that have a micro-batch to halve."""


@dataclass(frozen=True)
class AfterFailure:
    """What the ledger remembers of a failure, and whether another run follows."""

    retry: bool
    backoff_seconds: float = 0.0
    budget: str = ""
    """The retry budget that the failure uses; empty for none."""
    stuck: int = 0
    """Consecutive failures without a new optimizer step, this one included."""
    disruptions: int = 0
    """Consecutive restarts after disruptions without a new optimizer step, this one included."""
    halve: bool = False
    """Whether the next run has half the micro-batch."""


def after_failure(
    record: RunRecord,
    cause: Cause,
    limits: Retries,
    *,
    has_gained_step: bool,
    has_facts: bool = True,
    is_altered: bool = False,
) -> AfterFailure:
    """Return what follows one failure.

    Args:
        record: before this failure was counted.
        cause: why the run ended.
        limits: the profile's.
        has_gained_step: whether the run went past every step that was reported before.
        has_facts: whether its message listed its checkpoints; pretraining alone has any after a failure.
        is_altered: whether its stage.json or its signing key was not the one that it was started with.
    """
    # A new step shows that the stage can progress: the counts of what happened without one begin again.
    disruptions = 0 if has_gained_step else record.disruptions
    unchanged = AfterFailure(retry=True, stuck=record.stuck, disruptions=disruptions)
    # `stuck` stays: a run that was stopped or evicted does not show whether the stage can progress.
    if cause is Cause.STOPPED and record.is_stop_requested:
        return unchanged
    if cause in FREE:
        disruptions += 1
        return replace(
            unchanged,
            retry=disruptions <= limits.disruption,
            backoff_seconds=backoff_seconds(disruptions),
            disruptions=disruptions,
        )
    if cause in JUDGED and record.kind == "pretrain" and not has_facts:
        # The gates need its checkpoints. Its report is on the volume: one short run reads it again.
        used = record.failures.get("lostMessage", 0) + 1
        return replace(unchanged, retry=used <= 1, budget="lostMessage")
    if cause is Cause.BAD_INPUT and is_altered:
        # The input was right when the run was created, and the next run has a ConfigMap of its own.
        used = record.failures.get("altered", 0) + 1
        return replace(unchanged, retry=used <= MAX_ALTERED, budget="altered")
    if cause in NEVER or cause in JUDGED:
        return replace(unchanged, retry=False)
    if cause is Cause.OUT_OF_MEMORY:
        used = record.failures.get("outOfMemory", 0) + 1
        return replace(
            unchanged,
            # Without a micro-batch the next run would need as much memory as this one.
            retry=used <= limits.out_of_memory and record.kind in TRAINS,
            budget="outOfMemory",
            halve=True,
        )
    stuck = 1 if has_gained_step else record.stuck + 1
    budget, allowed = (
        ("hang", limits.hang) if cause is Cause.HANG else ("infrastructure", limits.infrastructure)
    )
    used = record.failures.get(budget, 0) + 1
    return replace(
        unchanged,
        retry=used <= allowed and stuck < MAX_FAILURES_WITHOUT_A_STEP,
        backoff_seconds=backoff_seconds(stuck),
        budget=budget,
        stuck=stuck,
    )


def backoff_seconds(in_a_row: int) -> float:
    """Return 0 after the first of several failures, so that training continues at once; then 10, 20, 40 and so on."""
    if in_a_row <= 1:
        return 0.0
    # Bounded before the power: a stored count may be any number.
    doublings = min(in_a_row - 2, MAX_DOUBLINGS)
    return min(FIRST_BACKOFF_SECONDS * 2.0**doublings, LONGEST_BACKOFF_SECONDS)


def not_before(now: datetime, after: AfterFailure) -> str | None:
    """Return when the next run may start, rounded up to the second; None: at once or never."""
    if not after.retry or after.backoff_seconds <= 0:
        return None
    # Times in a status have no fractions: rounded down, the run would start before its time.
    return timestamp(now + timedelta(seconds=after.backoff_seconds + 0.999))


def stalled(record: RunRecord, limits: Retries) -> tuple[str, str]:
    """Return reason and message for work that gets no further run."""
    stage = record.stage_key.shown_stage
    # Another version of the operator may have written a cause that this one does not know.
    cause = Cause(record.cause) if record.cause in CAUSES else Cause.CRASH
    detail = f": {record.message}" if record.message else ""
    again = "then start it again (any change of the spec does, and so does `dapt run`)"
    if cause is Cause.BAD_INPUT and ALTERED_STAGE_FILE in record.message:
        return TAMPERED, (
            f"the ConfigMap of {stage} was changed in {MAX_ALTERED + 1} runs in a row{detail}; find out who"
            f" changes ConfigMaps of this namespace, {again}"
        )
    if cause is Cause.BAD_INPUT and FOREIGN_KEY in record.message:
        return (
            NAME_TAKEN,
            f"{stage} got no key to sign with, {MAX_ALTERED + 1} runs in a row{detail}; {again}",
        )
    if cause is Cause.BAD_INPUT:
        return (
            BAD_INPUT,
            f"{stage} found its input wrong{detail}; correct it, {again}{_if_frozen(record.kind)}",
        )
    if cause is Cause.DIVERGED:
        # The same rate would diverge again.
        of_block = "".join(f" of {block}" for block in blocks_read_by(record.kind))
        onwards = f"{of_block}, {again}" if record.kind in FREED_BY_FAILURE else f" and {START_OVER}"
        return DIVERGED, f"{stage} diverged{detail}; lower the learning rate{onwards}"
    if cause is Cause.OUT_OF_MEMORY:
        return OUT_OF_MEMORY, (
            f"{stage} ran out of memory in run {record.try_number} and its micro-batch cannot be halved"
            f" again{detail}; give it more memory or accelerators, {again}"
        )
    if cause in FREE:
        return RETRIES_EXHAUSTED, (
            f"{stage} was interrupted {record.disruptions} times in a row without a new optimizer step"
            f" (retries.disruption is {limits.disruption}), last by {cause.value}{detail}; give it capacity that is"
            f" not taken away so soon (another queue, priority class or node pool), {again}"
        )
    if record.stuck >= MAX_FAILURES_WITHOUT_A_STEP:
        count = f"{record.stuck} times in a row without a new optimizer step"
    elif cause is Cause.HANG:
        count = f"{record.failures.get('hang', 0)} times by hanging (retries.hang is {limits.hang})"
    else:
        count = (
            f"{record.failures.get('infrastructure', 0)} times"
            f" (retries.infrastructure is {limits.infrastructure})"
        )
    return (
        RETRIES_EXHAUSTED,
        f"{stage} failed {count}, last by {cause.value}{detail}; correct it, {again}",
    )


def _if_frozen(kind: str) -> str:
    """Return what to do where the mistake is in a block that the start of the stage has frozen; empty without one."""
    blocks = blocks_frozen_by(kind)
    if not blocks:
        return ""
    named = blocks[0] if len(blocks) == 1 else f"{', '.join(blocks[:-1])} and {blocks[-1]}"
    return f"; {named} cannot change any more: to change {'one' if len(blocks) > 1 else 'it'}, {START_OVER}"
