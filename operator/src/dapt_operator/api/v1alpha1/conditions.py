"""Lists condition types, reasons and phases: every word that the status may use, with its meaning.

The tables of the docs are generated from the three maps below. Conditions follow kstatus: `Reconciling` is
True while there is work, `Ready` when the model is published, `Stalled` when user action is required, `Finished`
when nothing will run again.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:  # many need the words of this module, and few a status
    from dapt_operator.api.v1alpha1.status import Condition

# --- types ---
ACCEPTED: Final = "Accepted"
READY: Final = "Ready"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
QUOTA_RESERVED: Final = "QuotaReserved"
GATES_PASSED: Final = "GatesPassed"
SUSPENDED: Final = "Suspended"
FINISHED: Final = "Finished"

CONDITION_TYPES: Final[dict[str, str]] = {
    ACCEPTED: "The spec and its profile fit together and a plan was made.",
    READY: "The model is published.",
    RECONCILING: "Work is in progress, or waits for the cluster.",
    STALLED: "User action is required before anything continues; the message says which.",
    QUOTA_RESERVED: "The queue has granted what the running stage asks for.",
    GATES_PASSED: "The selected candidate passes the gates on the half of the held-out text that judges.",
    SUSPENDED: "spec.suspend is set and nothing runs.",
    FINISHED: "Nothing will run again, whatever becomes of the Jobs.",
}
"""Every condition type with its meaning. All are present from the first reconcile."""

# --- reasons ---
PLANNED: Final = "Planned"
INVALID_SPEC: Final = "InvalidSpec"
NOT_SUPPORTED: Final = "NotSupported"
PROFILE_NOT_FOUND: Final = "ProfileNotFound"
PROFILE_AMBIGUOUS: Final = "ProfileAmbiguous"
OUTSIDE_PROFILE_LIMITS: Final = "OutsideProfileLimits"
NOT_ENOUGH_MEMORY: Final = "NotEnoughMemory"
STAGE_RUNNING: Final = "StageRunning"
STAGE_STARTING: Final = "StageStarting"
WAITING_FOR_NODES: Final = "WaitingForNodes"
WAITING_FOR_QUOTA: Final = "WaitingForQuota"
QUOTA_GRANTED: Final = "QuotaGranted"
NO_QUEUE: Final = "NoQueue"
NOTHING_RUNNING: Final = "NothingRunning"
RETRYING: Final = "Retrying"
STOPPING: Final = "Stopping"
SUSPENDED_BY_USER: Final = "SuspendedByUser"
NOT_SUSPENDED: Final = "NotSuspended"
BAD_INPUT: Final = "BadInput"
OUT_OF_MEMORY: Final = "OutOfMemory"
RETRIES_EXHAUSTED: Final = "RetriesExhausted"
PENDING_TIMEOUT: Final = "PendingTimeout"
TAMPERED: Final = "Tampered"
NAME_TAKEN: Final = "NameTaken"
REFUSED: Final = "Refused"
SECRET_NOT_FOUND: Final = "SecretNotFound"
CLAIM_NOT_FOUND: Final = "ClaimNotFound"
IMAGE_NOT_PULLED: Final = "ImageNotPulled"
QUOTA_TOO_SMALL: Final = "QuotaTooSmall"
DIVERGED: Final = "Diverged"
GATES_BREACHED: Final = "GatesBreached"
GATES_NOT_JUDGED: Final = "GatesNotJudged"
ALL_GATES_PASSED: Final = "AllGatesPassed"
PASSED_WITH_WARNINGS: Final = "PassedWithWarnings"
NO_GAIN: Final = "NoGain"
PIN_UNKNOWN: Final = "PinUnknown"
ROLLING_BACK: Final = "RollingBack"
VERIFY_FAILED: Final = "VerifyFailed"
PROGRESSING: Final = "Progressing"
PUBLISHED: Final = "Published"
BUDGET_EXHAUSTED: Final = "BudgetExhausted"
NOT_FINISHED: Final = "NotFinished"
INTERNAL_ERROR: Final = "InternalError"

REASONS: Final[dict[str, str]] = {
    PLANNED: "A plan was made; its estimate is in status.plan.",
    INVALID_SPEC: "The spec contradicts itself or asks for something impossible; the message lists it all.",
    NOT_SUPPORTED: "The spec uses a field whose behaviour this version does not have.",
    PROFILE_NOT_FOUND: "There is no profile of that name, or none is marked as default.",
    PROFILE_AMBIGUOUS: "More than one profile is marked as default.",
    OUTSIDE_PROFILE_LIMITS: "The spec asks for more than the profile's limits allow.",
    NOT_ENOUGH_MEMORY: "By the estimate the run does not fit into the accelerators' memory.",
    STAGE_RUNNING: "A stage is running.",
    STAGE_STARTING: "A stage's Job was created and its processes are not running yet.",
    WAITING_FOR_NODES: "Pods wait for a node; the scheduler's reason is in the message.",
    WAITING_FOR_QUOTA: "The queue has not granted the quota yet; its reason is in the message.",
    QUOTA_GRANTED: "The queue has granted the quota.",
    NO_QUEUE: "The adaptation asks for no queue.",
    NOTHING_RUNNING: "No run is there, so no quota is held or waited for.",
    RETRYING: "A stage failed for a cause that may pass, and runs again.",
    STOPPING: "Running processes were requested to save and stop.",
    SUSPENDED_BY_USER: "spec.suspend is true.",
    NOT_SUSPENDED: "spec.suspend is false.",
    BAD_INPUT: "A stage found its configuration or data wrong (exit code 64); trying again would not help.",
    OUT_OF_MEMORY: "A stage ran out of memory even with a smaller micro-batch.",
    RETRIES_EXHAUSTED: "A stage failed as often as the profile's retries allow.",
    PENDING_TIMEOUT: "Pods waited for a node longer than the profile's pendingTimeoutSeconds.",
    TAMPERED: "A ConfigMap of the run was changed after it was written.",
    NAME_TAKEN: "An object that a stage needs cannot be created: an object of somebody else has its name.",
    REFUSED: "The cluster refuses an object that a stage needs: a quota, a policy, a right, a kind not installed.",
    SECRET_NOT_FOUND: "A Secret that a pod needs is missing.",
    CLAIM_NOT_FOUND: "A volume claim that a pod needs is missing.",
    IMAGE_NOT_PULLED: "The trainer's image cannot be pulled.",
    QUOTA_TOO_SMALL: "The queue can never grant what the stage asks for, or there is no such queue.",
    DIVERGED: "The loss is not a number or past the hard limit.",
    GATES_BREACHED: (
        "No candidate passes the gates; everything is kept, and a change of gates or selection decides again."
    ),
    GATES_NOT_JUDGED: "No candidate has been judged yet.",
    ALL_GATES_PASSED: "The selected candidate passes every gate.",
    PASSED_WITH_WARNINGS: "A gate was breached and onBreach is Warn; the model card says so.",
    NO_GAIN: "Candidates keep the limits, but none gains in the domain what the gates require.",
    PIN_UNKNOWN: "selection.pin names a candidate that does not exist; the message lists those that do.",
    ROLLING_BACK: "An attempt was given up; the next one starts with a lower learning rate and more replay.",
    VERIFY_FAILED: "The finished model does not pass the gates that its candidate passed.",
    PROGRESSING: "The model is not published yet; work continues.",
    PUBLISHED: "The model is at its destination.",
    BUDGET_EXHAUSTED: "limits.gpuHours is used up; the best candidate is kept.",
    NOT_FINISHED: "There is work left.",
    INTERNAL_ERROR: (
        "The operator fails on this adaptation, and tries again by itself; the message says what to report."
    ),
}
"""Every reason with its meaning."""

STALLING: Final = (
    INVALID_SPEC,
    NOT_SUPPORTED,
    PROFILE_NOT_FOUND,
    PROFILE_AMBIGUOUS,
    OUTSIDE_PROFILE_LIMITS,
    NOT_ENOUGH_MEMORY,
    BAD_INPUT,
    OUT_OF_MEMORY,
    RETRIES_EXHAUSTED,
    PENDING_TIMEOUT,
    TAMPERED,
    NAME_TAKEN,
    REFUSED,
    SECRET_NOT_FOUND,
    CLAIM_NOT_FOUND,
    IMAGE_NOT_PULLED,
    QUOTA_TOO_SMALL,
    DIVERGED,
    GATES_BREACHED,
    NO_GAIN,
    PIN_UNKNOWN,
    VERIFY_FAILED,
    BUDGET_EXHAUSTED,
    INTERNAL_ERROR,
)
"""Reasons that Stalled may have."""

# --- phases ---
PHASE_PREPARING: Final = "Preparing"
PHASE_MEASURING_BASE: Final = "MeasuringBase"
PHASE_PRETRAINING: Final = "Pretraining"
PHASE_EVALUATING: Final = "Evaluating"
PHASE_SELECTING: Final = "Selecting"
PHASE_FINETUNING: Final = "Finetuning"
PHASE_ALIGNING: Final = "Aligning"
PHASE_VERIFYING: Final = "Verifying"
PHASE_PUBLISHING: Final = "Publishing"
PHASE_SUSPENDED: Final = "Suspended"
PHASE_STALLED: Final = "Stalled"
PHASE_PUBLISHED: Final = "Published"
PHASE_BUDGET_EXHAUSTED: Final = "BudgetExhausted"

PHASES: Final[dict[str, str]] = {
    PHASE_PREPARING: (
        "The destination is tried; data is read, deduplicated, held out, tokenized and packed; tuning data that was"
        " edited later is read again."
    ),
    PHASE_MEASURING_BASE: "The base model is measured.",
    PHASE_PRETRAINING: "Continued pre-training runs, with evaluations in parallel.",
    PHASE_EVALUATING: "Pretraining has ended and candidates are still measured.",
    PHASE_SELECTING: "Candidates are judged.",
    PHASE_FINETUNING: "Supervised fine-tuning runs.",
    PHASE_ALIGNING: "Preference optimization runs.",
    PHASE_VERIFYING: "The finished model is measured.",
    PHASE_PUBLISHING: "The finished model is written to its destination.",
    PHASE_SUSPENDED: "spec.suspend is true and nothing runs.",
    PHASE_STALLED: "User action is required.",
    PHASE_PUBLISHED: "The model is published.",
    PHASE_BUDGET_EXHAUSTED: "The adaptation ended because limits.gpuHours is used up.",
}
"""Every phase with its meaning. The phase is derived from the conditions and the stages; nothing reads it
back."""

ConditionStatus = Literal["True", "False", "Unknown"]


def timestamp(now: datetime) -> str:
    """Return `now` (time zone aware) as Kubernetes writes it: UTC, whole seconds, Z."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of this type, or None."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Return whether the condition of this type exists with status True."""
    condition = find_condition(conditions, type_)
    return condition is not None and condition.status == "True"


def set_condition(
    conditions: tuple[Condition, ...],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    now: datetime,
    observed_generation: int | None = None,
) -> tuple[Condition, ...]:
    """Return the conditions with this one set or replaced, in their old order; a new one is added at the end.

    `lastTransitionTime` moves only when `status` changes, so that an equal condition stays equal and
    is not written.
    Raises ValueError for a type or reason that the tables above do not have.
    """
    if type_ not in CONDITION_TYPES:
        raise ValueError(f"unknown condition type {type_!r}")
    if reason not in REASONS:
        raise ValueError(f"unknown reason {reason!r}")
    old = find_condition(conditions, type_)
    value = (status, reason, message, observed_generation)
    if old is not None and (old.status, old.reason, old.message, old.observed_generation) == value:
        return conditions  # as nearly always: a new object would be validated to no end
    unchanged = old is not None and old.status == status
    from dapt_operator.api.v1alpha1.status import Condition

    new = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=old.last_transition_time if old is not None and unchanged else timestamp(now),
        observed_generation=observed_generation,
    )
    if old is None:
        return (*conditions, new)
    return tuple(new if condition.type == type_ else condition for condition in conditions)
