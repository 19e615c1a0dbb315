"""The planner's memory, kept in the status: enough to decide again when every Job is gone.

One record a lineage (stage, attempt, candidate), of its newest try. Facts are the compact form of the termination
message, at most 3.5 KiB a record. People read `status.stages`; nobody but the planner reads this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from dapt_operator.api.v1alpha1.base import Digest, FreeForm, Integer, LeanBase, Time

MAX_RECORDS = 40
MAX_ATTEMPTS = 16
MAX_MEASURES = 100
MAX_CLOSED = 800

ShortText = Annotated[str, Field(max_length=253)]


class RunRecord(LeanBase):
    """What is known of one lineage."""

    model_config = ConfigDict(extra="ignore")

    stage: ShortText
    """Name of the stage."""
    kind: ShortText
    """Kind of the stage."""
    attempt: Integer = 1
    """Attempt of pretraining it belongs to."""
    candidate: ShortText | None = None
    """The candidate it is about."""
    try_number: Integer = 1
    """The newest try. In YAML: try."""
    fence: Integer
    """Fencing number of the newest try."""
    state: Literal["Open", "Succeeded", "Failed"] = "Open"
    """Open: created and not known to have ended."""
    retry: bool = False
    """Failed, and another try is due."""
    cause: ShortText | None = None
    """Why the newest try failed."""
    exit_code: Integer | None = None
    """Exit code that decided."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """What the newest try said."""
    config_digest: Digest = ""
    """Digest of the configuration of the newest try."""
    generation: Integer = 0
    """Generation of the spec when the newest try was created."""
    profile_digest: Digest | None = None
    """Digest of the profile when the newest try was created."""
    created: Time | None = None
    """When the newest try was created."""
    started: Time | None = None
    """When its first process started."""
    completed: Time | None = None
    """When it ended."""
    not_before: Time | None = None
    """The next try waits until then."""
    failures: Annotated[Mapping[str, Integer], Field(max_length=8)] = Field(default_factory=dict)
    """Retries spent, by budget."""
    stuck: Integer = 0
    """Failures in a row without a step gained."""
    step: Integer = 0
    """Largest optimizer step that was seen."""
    restarts: Integer = 0
    """New tries after faults; a suspension is none."""
    halvings: Integer = 0
    """How often the micro-batch was halved."""
    expects: ShortText | None = None
    """For an evaluation: digest of the weights that it was told to score."""
    accelerator_seconds: float = 0.0
    """Accelerator-seconds of the tries that have ended."""
    held_seconds: float | None = None
    """Seconds from the first process' start to the end, of all tries that have ended."""
    asked_seconds: float | None = None
    """Seconds the newest try had run when it was asked to stop: counted when it is not seen again."""
    held: Integer | None = None
    """Accelerators it held then."""
    facts: FreeForm | None = None
    """Facts of the stage, as its termination message has them."""


class PhaseRecord(LeanBase):
    """A stretch of data that was read on the way to the checkpoint that an attempt starts from."""

    model_config = ConfigDict(extra="ignore")

    steps: Integer
    """Optimizer steps."""
    replay_fraction: float
    """Share of general text in it."""


class AttemptRecord(LeanBase):
    """A rollback as it was decided. It is written down before the new attempt starts, so that no later edit of the
    gates changes what an attempt is, and no restart of the operator repeats it."""

    model_config = ConfigDict(extra="ignore")

    number: Integer
    """Of the new attempt: 2 after the first rollback."""
    learning_rate: float
    """Its peak learning rate."""
    replay_fraction: float
    """Its share of general text."""
    start: ShortText | None = None
    """Candidate that it starts from; absent: the base model."""
    phases: Annotated[tuple[PhaseRecord, ...], Field(strict=False, max_length=MAX_ATTEMPTS)] = ()
    """What was read on the way to that candidate, oldest first."""
    reason: Annotated[str, Field(max_length=1024)] = ""
    """Why the attempt before it was given up."""
    time: Time | None = None
    """When it was decided."""


class MeasureRecord(LeanBase):
    """What a finished evaluation has measured, in short, when its record was let go."""

    model_config = ConfigDict(extra="ignore")

    candidate: ShortText
    """Its id."""
    expects: ShortText | None = None
    """Digest of the weights that it was told to score."""
    text: Annotated[str, Field(max_length=4096)]
    """Digest, losses and scores as JSON; what the base model's measure says too is left out."""


class ClosedRuns(LeanBase):
    """What is remembered of records that were let go, since there is room for so many."""

    model_config = ConfigDict(extra="ignore")

    lineages: Annotated[tuple[ShortText, ...], Field(strict=False, max_length=MAX_CLOSED)] = ()
    """Stage, attempt, candidate and number of tries of each."""
    accelerator_seconds: Annotated[Mapping[str, float], Field(max_length=16)] = Field(default_factory=dict)
    """What they cost, by kind of stage."""
    failures: Annotated[Mapping[str, Integer], Field(max_length=16)] = Field(default_factory=dict)
    """Retries that they spent, by budget."""
    restarts: Integer = 0
    """Their new tries after faults."""


class Ledger(LeanBase):
    """All records."""

    model_config = ConfigDict(extra="ignore")

    fence: Integer = 0
    """Newest fencing number that was given out."""
    progress_time: Time | None = None
    """When status.progress was last written."""
    shared: Digest | None = None
    """Digest of the shared objects (work volume, Service) as they were last applied."""
    made: Annotated[tuple[ShortText, ...], Field(strict=False, max_length=8)] = ()
    """Shared objects that were made, as KIND/NAME: what cleanup may remove."""
    cleaned: Time | None = None
    """When cleanup was done; it is done once."""
    attempts: Annotated[tuple[AttemptRecord, ...], Field(strict=False, max_length=MAX_ATTEMPTS)] = ()
    """Attempts after the first, in their order."""
    measures: Annotated[tuple[MeasureRecord, ...], Field(strict=False, max_length=MAX_MEASURES)] = ()
    """Evaluations whose records were let go; when there are too many, what has forgotten most goes first."""
    closed: ClosedRuns | None = None
    """Records that were let go."""
    runs: Annotated[tuple[RunRecord, ...], Field(strict=False, max_length=MAX_RECORDS)] = ()
    """One record a lineage, in the order of their first try."""
