"""Lists the reasons that our Kubernetes Events may have. The table of the docs is generated from it."""

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
RECREATED: Final = "Recreated"
STEPS_SKIPPED: Final = "StepsSkipped"
LOSS_SPIKED: Final = "LossSpiked"

EVENTS: Final[dict[str, tuple[str, str]]] = {
    STAGE_STARTED: (NORMAL, "A run of a stage was created."),
    STAGE_SUCCEEDED: (
        NORMAL,
        "A stage succeeded; the message names the stage that was started after it.",
    ),
    STAGE_FAILED: (WARNING, "A run failed; the message gives the cause and the sentence of the trainer."),
    CANDIDATE_SELECTED: (NORMAL, "A candidate was chosen; the message says why."),
    ROLLED_BACK: (WARNING, "An attempt was given up; the message says why, and how the next one starts."),
    RECREATED: (
        WARNING,
        "An object of the operator was gone and was created again; the message names it, and what that costs.",
    ),
    STEPS_SKIPPED: (
        WARNING,
        "Steps of pretraining changed no weight, because loss or gradient was not a number; the training continues.",
    ),
    LOSS_SPIKED: (
        WARNING,
        "The training loss rose over the mean before by six standard deviations; the training continues.",
    ),
    **dict.fromkeys(STALLING, (WARNING, "User action is required: the reason and message of Stalled.")),
    PUBLISHED: (NORMAL, "The adaptation ended: the model is at its destination."),
    BUDGET_EXHAUSTED: (WARNING, "The adaptation ended without a model: limits.gpuHours is used up."),
}
"""Every reason that an Event of ours may have, with its type and meaning."""
