"""Defines the part of a status that metrics are computed from.

Every version of every resource is read for its metrics. Reading the whole status of a grown adaptation takes
milliseconds, and most of it are records of evaluations and tables of tasks, which no series shows.
"""

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from dapt_contract.base import MAX_ATTEMPTS
from dapt_operator.api.v1alpha1.base import Time, camel_case
from dapt_operator.api.v1alpha1.status import MAX_CANDIDATES, MAX_STAGES
from dapt_operator.api.v1alpha1.stored.ledger import MAX_RECORDS

Number: TypeAlias = float
"""A whole number too: a sample is a floating-point number in any case."""
_Sums: TypeAlias = Annotated[Mapping[str, Number], Field(max_length=64)]
"""Of a kind of stage or of a retry budget, of which there are some ten; each is a line of every scrape."""


class _Part(BaseModel):
    """A block of the status with a few of its fields. Its texts are cleaned when they become labels."""

    model_config = ConfigDict(
        alias_generator=camel_case, extra="ignore", frozen=True, strict=True, allow_inf_nan=False
    )


class ShownCondition(_Part):
    """A condition."""

    type: str
    status: str
    reason: str


class ShownCandidate(_Part):
    """A candidate without its table of tasks."""

    id: str
    step: Number | None = None
    forgetting: Number | None = None
    domain_perplexity_decrease: Number | None = None
    gain: Number | None = None
    gain_with_tasks: Number | None = None

    @property
    def whole_gain(self) -> float | None:
        """As `CandidateStatus.whole_gain`."""
        return self.gain if self.gain_with_tasks is None else self.gain_with_tasks


class ShownSelection(_Part):
    """The chosen candidate."""

    id: str


class ShownProgress(_Part):
    """Progress of pretraining, or of a run of another stage."""

    fraction: Number | None = None
    tokens: Number | None = None
    eta_seconds: Number | None = None


class ShownStage(_Part):
    """A run of a stage."""

    kind: str
    state: str = "Pending"
    progress: ShownProgress | None = None


class ShownUsage(_Part):
    """What the adaptation has cost."""

    goodput: Number | None = None
    cost: Number | None = None


class ShownPreflight(_Part):
    """What a training stage measured before it loaded the model."""

    all_reduce_bytes_per_second: Number | None = None
    point_to_point_bytes_per_second: Number | None = None
    shared_memory_bytes: Number | None = None
    write_bytes_per_second: Number | None = None
    read_bytes_per_second: Number | None = None
    clock_difference_seconds: Number | None = None
    warnings: Annotated[tuple[str, ...], Field(strict=False)] = ()


class ShownAttempt(_Part):
    """An attempt of pretraining; its number alone counts."""


class ShownRun(_Part):
    """A record of a run without its facts."""

    kind: str
    state: str = "Open"
    created: Time | None = None
    started: Time | None = None
    completed: Time | None = None
    failures: _Sums = Field(default_factory=dict)
    restarts: Number = 0
    accelerator_seconds: Number = 0.0
    accelerators: Number | None = None
    ran_seconds: Number | None = None


class ShownClosedRuns(_Part):
    """The sums over dropped records."""

    failures: _Sums = Field(default_factory=dict)
    restarts: Number = 0
    accelerator_seconds: _Sums = Field(default_factory=dict)


class ShownLedger(_Part):
    """The ledger without facts and measures."""

    runs: Annotated[tuple[ShownRun, ...], Field(strict=False, max_length=MAX_RECORDS)] = ()
    closed: ShownClosedRuns | None = None
    progress_time: Time | None = None


class ShownStatus(_Part):
    """The status of an adaptation, as far as a series shows it."""

    phase: str | None = None
    conditions: Annotated[tuple[ShownCondition, ...], Field(strict=False, max_length=16)] = ()
    gates: Annotated[Mapping[str, bool], Field(max_length=16)] | None = None
    task_drop_points: Annotated[Mapping[str, Number], Field(max_length=100)] | None = None
    progress: ShownProgress | None = None
    stages: Annotated[tuple[ShownStage, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    candidates: Annotated[tuple[ShownCandidate, ...], Field(strict=False, max_length=MAX_CANDIDATES)] = ()
    selected: ShownSelection | None = None
    attempts: Annotated[tuple[ShownAttempt, ...], Field(strict=False, max_length=MAX_ATTEMPTS)] = ()
    usage: ShownUsage | None = None
    preflight: ShownPreflight | None = None
    ledger: ShownLedger | None = None
