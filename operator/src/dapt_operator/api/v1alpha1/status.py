"""`DomainAdaptation.status`: what is known about an adaptation.

Written by the operator (and by the local run) alone, read by people, kubectl and the planner's next
visit. Absent fields are left out. Unknown fields are ignored on reading, so that an older operator reads what
a newer one wrote. Sizes are bounded: 100 candidates, 30 stages, 256 KiB in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from dapt_operator.api.v1alpha1.base import Digest, Integer, LeanBase, Text, Time
from dapt_operator.api.v1alpha1.ledger import Ledger

MAX_CANDIDATES = 100
MAX_STAGES = 30
MAX_STATUS_BYTES = 256 * 1024

StageState = Literal["Pending", "Running", "Succeeded", "Failed", "Suspended"]
Message = Annotated[str, Field(max_length=4096)]
ShortText = Annotated[str, Field(max_length=253)]
Warnings = Annotated[tuple[Text, ...], Field(strict=False, max_length=32)]


class StatusBase(LeanBase):
    """A block of the status: unknown fields are ignored, empty lists and maps left out."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusBase):
    """One aspect of the state, in Kubernetes' usual form."""

    type: ShortText
    """Which aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: ShortText
    """Why, in one word of a fixed list."""
    message: Annotated[str, Field(max_length=32_768)] = ""
    """Why, in one sentence with the object, the number, the limit and the next step."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Integer | None = None
    """Generation of the spec that this was said about."""


class ProgressStatus(StatusBase):
    """How far the running pretraining is."""

    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the whole budget that is done."""
    step: Integer | None = None
    """Optimizer steps done."""
    total_steps: Integer | None = None
    """Optimizer steps in all."""
    tokens: Integer | None = None
    """Training tokens done."""
    tokens_per_second: float | None = None
    """Training speed over all ranks, in tokens a second."""
    eta_seconds: Annotated[float, Field(ge=0)] | None = None
    """Estimated seconds until the stage ends."""


class ResolvedModel(StatusBase):
    """What was found of the base model."""

    source: Text | None = None
    """The source as the spec has it."""
    revision: Digest | None = None
    """Commit that a moving revision was resolved to."""
    digest: Digest | None = None
    """SHA-256 over the model's files."""


class Resolved(StatusBase):
    """What 'automatic' and the defaults that depend on other fields came to."""

    model: ResolvedModel | None = None
    """The base model."""
    profile: ShortText | None = None
    """The profile in use."""
    learning_rate: float | None = None
    """Peak learning rate of pretraining."""
    finetuning_learning_rate: float | None = None
    """Peak learning rate of fine-tuning."""
    replay_fraction: float | None = None
    """Share of training tokens that is general text."""
    sequence_length: Integer | None = None
    """Tokens a training sequence."""
    world_size: Integer | None = None
    """Ranks of pretraining."""
    global_batch_size: Integer | None = None
    """Sequences an optimizer step."""
    micro_batch_size: Integer | None = None
    """Sequences a rank in one forward pass."""
    gradient_accumulation_steps: Integer | None = None
    """Forward passes an optimizer step."""
    zero_stage: Integer | None = None
    """ZeRO stage."""
    offload: ShortText | None = None
    """What is kept in CPU memory."""
    gradient_checkpointing: bool | None = None
    """Whether activations are recomputed."""
    precision: ShortText | None = None
    """Number format."""
    total_tokens: Integer | None = None
    """Training tokens of the budget."""
    total_steps: Integer | None = None
    """Optimizer steps of the budget."""


class Frozen(StatusBase):
    """Blocks of the spec that may no longer change, since the stage that needs them has started."""

    model: bool | None = None
    """spec.model, with prepare."""
    corpus: bool | None = None
    """spec.corpus, with prepare."""
    evaluation: bool | None = None
    """spec.evaluation, with baseline."""
    profile: bool | None = None
    """spec.profile, with baseline."""
    pretraining: bool | None = None
    """spec.pretraining, with pretrain."""
    finetuning: bool | None = None
    """spec.finetuning, with finetune."""
    preference: bool | None = None
    """spec.preference, with align."""
    output: bool | None = None
    """spec.output, with publish."""


class Digests(StatusBase):
    """SHA-256 digests that show whether something was changed under us."""

    profile: Digest | None = None
    """The copy of the profile."""
    config: Digest | None = None
    """The config of the running stage."""
    owner: Digest | None = None
    """The operator instance that owns the adaptation."""
    run: Digest | None = None
    """The whole run, as published beside the model."""


class PlanSummary(StatusBase):
    """What the run is estimated to need."""

    tokens: Integer | None = None
    """Training tokens."""
    steps: Integer | None = None
    """Optimizer steps."""
    gpu_hours: float | None = None
    """Accelerator-hours over all stages."""
    memory_gib_per_gpu: float | None = None
    """Memory of one accelerator, in GiB."""
    warnings: Warnings = ()
    """What to think about before the money is spent."""


class StageStatus(StatusBase):
    """One run of a stage."""

    name: ShortText
    """Name of the run."""
    kind: ShortText
    """Kind of stage."""
    attempt: Integer = 1
    """Attempt of pretraining it belongs to."""
    try_number: Integer = 1
    """How often it was started, counting this time. In YAML: try."""
    state: StageState = "Pending"
    """Where it stands."""
    candidate: ShortText | None = None
    """The candidate that an evaluation is about."""
    run_key: Digest | None = None
    """Identity of the run; names of its objects follow from it."""
    reason: ShortText | None = None
    """Cause of a failure or of waiting, in one word."""
    exit_code: Integer | None = None
    """Exit code that decided."""
    start_time: Time | None = None
    """When its first process started."""
    completion_time: Time | None = None
    """When it ended."""
    message: Message | None = None
    """What to know about it, in one sentence."""
    last_log_lines: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()
    """Last lines of the rank that failed, of the newest try that did; at most 20 and 2 KiB."""


class TaskScore(StatusBase):
    """A candidate's result on one task or probe set, against the base model."""

    score: float
    """Score, 0 to 1."""
    change_points: float | None = None
    """Points (hundredths) won over the base model; below 0: lost."""
    standard_error_points: float | None = None
    """Paired standard error of the change, in points."""


class CandidateStatus(StatusBase):
    """One checkpoint, average or interpolation, with what was measured."""

    id: ShortText
    """a1-s4560, a1-avg3 or a1-s4560-i0.8."""
    attempt: Integer | None = None
    """Attempt it comes from."""
    step: Integer | None = None
    """Optimizer step it was saved at."""
    digest: Digest | None = None
    """SHA-256 of its weights."""
    domain_perplexity: float | None = None
    """exp(negative log-likelihood / base-tokenizer tokens) of the domain's held-out text."""
    general_perplexity: float | None = None
    """The same of the general held-out text."""
    forgetting: float | None = None
    """General perplexity over the base model's, minus 1."""
    domain_perplexity_decrease: float | None = None
    """1 minus domain perplexity over the base model's."""
    gain: float | None = None
    """What candidates are ranked by."""
    tasks: Annotated[Mapping[str, TaskScore], Field(max_length=256)] = Field(default_factory=dict)
    """Results by task."""
    passes: bool | None = None
    """Whether it passes the gates."""
    message: Message | None = None
    """Why it does not pass."""


class SelectedStatus(StatusBase):
    """The candidate that was taken."""

    id: ShortText
    """Its id."""
    reason: Text
    """Why, in words."""
    digest: Digest | None = None
    """SHA-256 of its weights."""


class AttemptStatus(StatusBase):
    """One pretraining; a rollback starts the next."""

    number: Integer
    """1 for the first."""
    learning_rate: float | None = None
    """Its peak learning rate."""
    replay_fraction: float | None = None
    """Its share of general text."""
    start: ShortText | None = None
    """Candidate that it started from; absent: the base model."""
    total_steps: Integer | None = None
    """Optimizer steps that it was given."""
    ended_by: ShortText | None = None
    """Why it ended; absent: it runs."""
    reason: Text | None = None
    """Why it was given up for the next attempt, or how it ended, in one sentence."""


class Usage(StatusBase):
    """What it has cost so far."""

    gpu_hours: float | None = None
    """Accelerator-hours over all stages, attempts and evaluations."""
    goodput: float | None = None
    """Share of the time that pretraining held its gang which went into optimizer steps that count: loading, saving,
    measuring and steps that were done twice after a fault do not."""
    restarts: Integer | None = None
    """New tries after faults."""


class OutputStatus(StatusBase):
    """The published model."""

    destination: Text | None = None
    """Where it is."""
    digest: Digest | None = None
    """Digest of the run, as in the manifest beside the model."""
    deployable: bool | None = None
    """False after continued pre-training alone: such a model is not for deployment."""


class DomainAdaptationStatus(StatusBase):
    """What is known about an adaptation."""

    observed_generation: Integer | None = None
    """Generation of the spec that was last acted on."""
    phase: ShortText | None = None
    """Derived from the conditions, for people; nothing reads it back."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            strict=False,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """All types are present from the first visit."""
    forgetting: float | None = None
    """General perplexity over the base model's, minus 1, of the selected candidate, else the latest."""
    gain: float | None = None
    """Gain of the same candidate."""
    attempt: Integer | None = None
    """Attempt that is running or was the last."""
    progress: ProgressStatus | None = None
    """How far pretraining is."""
    resolved: Resolved | None = None
    """What automatic fields came to."""
    frozen: Frozen | None = None
    """Blocks of the spec that may no longer change."""
    digests: Digests | None = None
    """Digests of what must not change under us."""
    plan: PlanSummary | None = None
    """The estimate."""
    stages: Annotated[tuple[StageStatus, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    """Runs of stages, oldest first."""
    candidates: Annotated[tuple[CandidateStatus, ...], Field(strict=False, max_length=MAX_CANDIDATES)] = ()
    """What was measured."""
    selected: SelectedStatus | None = None
    """The candidate that was taken."""
    attempts: Annotated[tuple[AttemptStatus, ...], Field(strict=False, max_length=16)] = ()
    """Pretrainings so far."""
    usage: Usage | None = None
    """The cost so far."""
    output: OutputStatus | None = None
    """The published model."""
    ledger: Ledger | None = None
    """The planner's own memory; not for people."""
