"""Says what a user can do about a reason of a condition, in one sentence for each reason."""

from __future__ import annotations

from typing import Final

from dapt_operator.api.v1alpha1 import conditions

NEXT_STEPS: Final[dict[str, str]] = {
    conditions.INVALID_SPEC: "correct the fields that the message names and submit the manifest again",
    conditions.NOT_SUPPORTED: "write what the message says instead and submit the manifest again",
    conditions.PROFILE_NOT_FOUND: "name an existing profile in spec.profile, or have one marked as default",
    conditions.PROFILE_AMBIGUOUS: "name one profile in spec.profile, or have one mark removed",
    conditions.OUTSIDE_PROFILE_LIMITS: "ask for less, or have the profile's limits raised by the platform team",
    conditions.NOT_ENOUGH_MEMORY: (
        "use LoRA, a shorter sequenceLength, gradientCheckpointing: true, or more ranks; `dapt plan` shows the parts"
    ),
    conditions.BAD_INPUT: (
        "correct the file and line, or the field, that the message names, then change the spec or create a new"
        " adaptation"
    ),
    conditions.OUT_OF_MEMORY: "set a smaller microBatchSize or sequenceLength, or use more ranks",
    conditions.RETRIES_EXHAUSTED: "remove the cause in the message; any change of the spec then allows new retries",
    conditions.PENDING_TIMEOUT: "free nodes or request less in spec.resources, then change the spec",
    conditions.TAMPERED: "delete the ConfigMap that the message names; the stage then starts again",
    conditions.NAME_TAKEN: "delete or rename the object that the message names",
    conditions.REFUSED: "have the quota, policy or right changed that the message names",
    conditions.SECRET_NOT_FOUND: "create the Secret in this namespace, or correct spec.credentials",
    conditions.CLAIM_NOT_FOUND: "create the claim in this namespace, or correct the address that names it",
    conditions.IMAGE_NOT_PULLED: "correct the profile's trainerImage, or give its service account a pull Secret",
    conditions.QUOTA_TOO_SMALL: "request less, name another queue, or have the queue's quota raised",
    conditions.DIVERGED: "set a lower learningRate or a longer warm-up for the stage",
    conditions.GATES_BREACHED: (
        "compare the candidates with `dapt checkpoints`, then change spec.gates to accept one, or train with more"
        " replay or a lower rate"
    ),
    conditions.NO_GAIN: "use more tokens, a higher rate or less replay, or lower gates.minDomainPerplexityDecrease",
    conditions.PIN_UNKNOWN: "pin one of the candidates of `dapt checkpoints`, or remove the pin",
    conditions.VERIFY_FAILED: "change spec.gates, or start over with fewer epochs or a lower rate in finetuning",
    conditions.BUDGET_EXHAUSTED: "create a new adaptation with a larger limits.gpuHours",
    conditions.INTERNAL_ERROR: "report the message with the operator's log; it tries again by itself",
    conditions.WAITING_FOR_NODES: "nothing, if nodes are coming; else free some, or request less in spec.resources",
    conditions.WAITING_FOR_QUOTA: "nothing, the queue decides; another queue, or less in spec.resources, may be faster",
    conditions.RETRYING: "nothing, it runs again by itself; look at `dapt logs` if it happens repeatedly",
    conditions.ROLLING_BACK: "nothing, the next attempt starts with a lower learning rate and more replay",
    conditions.SUSPENDED_BY_USER: "run `dapt resume` to continue",
    conditions.STOPPING: "nothing, the stage saves and ends",
}
"""By reason; one that is not here needs nothing."""


def next_step(reason: str) -> str:
    """Return what to do about a reason; empty when there is nothing to do."""
    return NEXT_STEPS.get(reason, "")
