"""What follows a cause: whether another try is due, when, and with what change.

Each cause has its own budget (docs/troubleshooting.md): 64 never, but for a stage.json that was changed; out of memory
with half the micro-batch; a disruption or a stop is free; infrastructure with backoff, never three times without a
step gained; a hang by its own budget. The forgetting limit and divergence are not faults: they are judged with the
checkpoints so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dapt_contract.failure import ALTERED_STAGE_FILE, Cause
from dapt_operator.api.v1alpha1.conditions import (
    BAD_INPUT,
    DIVERGED,
    OUT_OF_MEMORY,
    RETRIES_EXHAUSTED,
    TAMPERED,
    timestamp,
)
from dapt_operator.api.v1alpha1.ledger import RunRecord
from dapt_operator.api.v1alpha1.profile import Retries

FIRST_BACKOFF_SECONDS = 10.0
LONGEST_BACKOFF_SECONDS = 300.0
MAX_FAILURES_WITHOUT_A_STEP = 3
MAX_ALTERED = 2
"""Tries after pods that found their stage.json changed: once may be an accident."""
FREE: frozenset[Cause] = frozenset({Cause.DISRUPTION, Cause.STOPPED})
JUDGED: frozenset[Cause] = frozenset({Cause.FORGETTING_LIMIT, Cause.DIVERGED})
NEVER: frozenset[Cause] = frozenset({Cause.BAD_INPUT})
TRAINS: frozenset[str] = frozenset({"pretrain", "finetune", "align"})


@dataclass(frozen=True)
class AfterFailure:
    """What the ledger remembers of a failure, and what is told when no try is left."""

    retry: bool
    backoff_seconds: float = 0.0
    budget: str = ""
    """Which count of the record rises."""
    stuck: int = 0
    halve: bool = False


def after_failure(
    record: RunRecord,
    cause: Cause,
    limits: Retries,
    *,
    gained: bool,
    has_facts: bool = True,
    altered: bool = False,
) -> AfterFailure:
    """Judge one failure.

    Args:
        record: the lineage before this failure was counted.
        cause: why the try ended.
        limits: the profile's.
        gained: whether the try went past every step seen before.
        has_facts: whether its message told its checkpoints; pretraining alone has any after a failure.
        altered: whether its stage.json was not the one it was started with.
    """
    if cause in FREE:
        return AfterFailure(retry=True, stuck=record.stuck)
    if cause in JUDGED and record.kind == "pretrain" and not has_facts:
        # its report is on the volume: one short try reads it again
        spent = record.failures.get("lostMessage", 0) + 1
        return AfterFailure(retry=spent <= 1, budget="lostMessage", stuck=record.stuck)
    if cause is Cause.BAD_INPUT and altered:
        # the next try has a ConfigMap of its own, under another name
        spent = record.failures.get("altered", 0) + 1
        return AfterFailure(retry=spent <= MAX_ALTERED, budget="altered", stuck=record.stuck)
    if cause in NEVER or cause in JUDGED:
        return AfterFailure(retry=False, stuck=record.stuck)
    if cause is Cause.OUT_OF_MEMORY:
        spent = record.failures.get("outOfMemory", 0) + 1
        return AfterFailure(
            retry=spent <= limits.out_of_memory and record.kind in TRAINS,
            budget="outOfMemory",
            stuck=record.stuck,
            halve=True,
        )
    stuck = 1 if gained else record.stuck + 1
    if cause is Cause.HANG:
        spent = record.failures.get("hang", 0) + 1
        allowed = spent <= limits.hang
        budget = "hang"
    else:
        spent = record.failures.get("infrastructure", 0) + 1
        allowed = spent <= limits.infrastructure
        budget = "infrastructure"
    return AfterFailure(
        retry=allowed and stuck < MAX_FAILURES_WITHOUT_A_STEP,
        backoff_seconds=backoff_seconds(stuck),
        budget=budget,
        stuck=stuck,
    )


def backoff_seconds(stuck: int) -> float:
    """0 after the first failure of a row, so that training goes on at once; then 10, 20, 40 and so on."""
    if stuck <= 1:
        return 0.0
    return float(min(FIRST_BACKOFF_SECONDS * 2 ** (stuck - 2), LONGEST_BACKOFF_SECONDS))


def not_before(now: datetime, after: AfterFailure) -> str | None:
    """When the next try may start, rounded up to the second."""
    if not after.retry or after.backoff_seconds <= 0:
        return None
    return timestamp(now + timedelta(seconds=after.backoff_seconds + 0.999))


def stalled(record: RunRecord, limits: Retries) -> tuple[str, str]:
    """Reason and sentence for a lineage that gets no further try."""
    cause = Cause(record.cause) if record.cause else Cause.CRASH
    said = f": {record.message}" if record.message else ""
    again = "then start it again (any change of the spec does, and so does `dapt run`)"
    if cause is Cause.BAD_INPUT and ALTERED_STAGE_FILE in record.message:
        return TAMPERED, (
            f"the ConfigMap of {record.stage} was changed under {MAX_ALTERED + 1} tries in a row{said}; find out who"
            f" changes ConfigMaps of this namespace, {again}"
        )
    if cause is Cause.BAD_INPUT:
        return BAD_INPUT, f"{record.stage} found its input wrong{said}; correct it, {again}"
    if cause is Cause.DIVERGED:
        return DIVERGED, f"{record.stage} diverged{said}; lower the learning rate, {again}"
    if cause is Cause.OUT_OF_MEMORY:
        return OUT_OF_MEMORY, (
            f"{record.stage} ran out of memory in try {record.try_number} and its micro-batch cannot be halved"
            f" again{said}; give it more memory or accelerators, {again}"
        )
    if record.stuck >= MAX_FAILURES_WITHOUT_A_STEP:
        count = f"{record.stuck} times in a row without a step gained"
    elif cause is Cause.HANG:
        count = f"{record.failures.get('hang', 0)} times by hanging (retries.hang is {limits.hang})"
    else:
        count = (
            f"{record.failures.get('infrastructure', 0)} times"
            f" (retries.infrastructure is {limits.infrastructure})"
        )
    return (
        RETRIES_EXHAUSTED,
        f"{record.stage} failed {count}, last by {cause.value}{said}; correct it, {again}",
    )
