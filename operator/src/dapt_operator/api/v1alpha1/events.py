"""Kubernetes Events: the fixed set of reasons that ours may have. The table of the docs is generated from it."""

from __future__ import annotations

from typing import Final

from dapt_operator.api.v1alpha1.conditions import BUDGET_EXHAUSTED, PUBLISHED, STALLING

NORMAL: Final = "Normal"
WARNING: Final = "Warning"

STAGE_STARTED: Final = "StageStarted"
STAGE_SUCCEEDED: Final = "StageSucceeded"
STAGE_FAILED: Final = "StageFailed"
CANDIDATE_SELECTED: Final = "CandidateSelected"
ROLLED_BACK: Final = "RolledBack"

EVENTS: Final[dict[str, tuple[str, str]]] = {
    STAGE_STARTED: (NORMAL, "A try of a stage was created."),
    STAGE_SUCCEEDED: (
        NORMAL,
        "A stage has done its work; the message names the one that was started after it.",
    ),
    STAGE_FAILED: (WARNING, "A try has failed, by which cause and with which sentence."),
    CANDIDATE_SELECTED: (NORMAL, "A candidate was chosen, and why."),
    ROLLED_BACK: (WARNING, "An attempt was given up, and why; what the next one starts from and with."),
    **dict.fromkeys(
        STALLING, (WARNING, "Nothing goes on until a person acts: the reason and message of Stalled.")
    ),
    PUBLISHED: (NORMAL, "It has ended: the model is at its destination."),
    BUDGET_EXHAUSTED: (WARNING, "It has ended without a model: limits.gpuHours is used up."),
}
"""Every reason that an Event of ours may have, with its type and meaning."""
