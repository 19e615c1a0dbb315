"""Defines what the status stores of a running training: progress, the forecast from its readings, the preflight."""

from typing import Annotated

from pydantic import ConfigDict, Field

from dapt_contract.pod.preflight import MAX_PREFLIGHT_WARNINGS
from dapt_operator.api.v1alpha1.base import Digest, Integer, LeanBase, ShortText, Text, Time


class StatusBase(LeanBase):
    """A block of the status: unknown fields are ignored, empty lists and maps are left out."""

    model_config = ConfigDict(extra="ignore")


class ForecastStatus(StatusBase):
    """General perplexity that is to be expected at the end, from the newest reading: information, no gate reads it."""

    forgetting: float
    """Expected rise over the base model's, as `status.forgetting`."""
    least: float
    """Lower end of the range in which the recorded runs ended, from as far before their end."""
    most: float
    """Upper end of that range."""
    step: Integer
    """Step of the reading that it follows from."""


class ProgressStatus(StatusBase):
    """Progress of the running pretraining."""

    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the whole budget that is done."""
    step: Integer | None = None
    """Optimizer steps done."""
    total_steps: Integer | None = None
    """Optimizer steps in all."""
    tokens: Integer | None = None
    """Training tokens done."""
    tokens_per_second: float | None = None
    """Training speed over all ranks, in tokens per second."""
    eta_seconds: Annotated[float, Field(ge=0)] | None = None
    """Estimated seconds until the stage ends."""
    skipped_steps: Integer | None = None
    """Steps that changed no weight, because loss or gradient was not a number; absent where there is none."""
    loss_spikes: Integer | None = None
    """How often the training loss rose over the mean before by six standard deviations; absent where it did not."""
    slow_rank: Text | None = None
    """Rank that its peers wait for in each step, with its node and by how much: information. Absent: there is none."""
    forecast: ForecastStatus | None = None
    """Forecast of `status.forgetting` at the end of this attempt. Absent: before a tenth of it, after its end, and
    where no recorded run is like it (docs/science.md)."""


class StageProgress(StatusBase):
    """Progress of a running stage."""

    fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage that is done."""
    activity: ShortText | None = None
    """What it is doing, in a few words."""
    eta_seconds: Annotated[float, Field(ge=0)] | None = None
    """Estimated seconds until the stage ends. Absent: there is nothing to estimate from yet."""
    slow_rank: Text | None = None
    """As `status.progress.slowRank`, of fine-tuning and preference tuning."""
    time: Time | None = None
    """When this was read; it is written at most every 10 s and 1 %."""


class PreflightStatus(StatusBase):
    """What the ranks of a training stage measured before they loaded the model, in the newest run that did."""

    stage: ShortText | None = None
    """Kind of the stage."""
    run_key: Digest | None = None
    """Identity of the run, as in `stages`."""
    seconds: Annotated[float, Field(ge=0)] | None = None
    """Time that it took."""
    all_reduce_bytes_per_second: Annotated[float, Field(ge=0)] | None = None
    """Bus bandwidth of an all-reduce over all ranks. Absent: there is one rank."""
    point_to_point_bytes_per_second: Annotated[float, Field(ge=0)] | None = None
    """Bandwidth of the slowest link, while all links are in use. Absent: there is one rank."""
    slowest_link: Text | None = None
    """That link: its two ranks with their nodes."""
    shared_memory_bytes: Integer | None = None
    """Size of /dev/shm on the node that has the least."""
    write_bytes_per_second: Annotated[float, Field(ge=0)] | None = None
    """Speed at which the slowest node writes to the work volume."""
    read_bytes_per_second: Annotated[float, Field(ge=0)] | None = None
    """Speed at which the slowest node reads from it."""
    clock_difference_seconds: Annotated[float, Field(ge=0)] | None = None
    """Largest difference between the clocks of two nodes. Absent: there is one node."""
    warnings: Annotated[tuple[Text, ...], Field(strict=False, max_length=MAX_PREFLIGHT_WARNINGS)] = ()
    """What slows the run down, or will."""
