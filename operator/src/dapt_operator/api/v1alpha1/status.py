"""Defines `DomainAdaptation.status`, the observed state of an adaptation.

Only the operator (and the local run) writes it; users, kubectl and the planner's next reconcile read it. Absent
fields are left out. Unknown fields are ignored on reading, so that an older operator reads what a newer one wrote.
Sizes are bounded: 100 candidates, 30 stages, 256 KiB in all.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from dapt_contract.base import MAX_ATTEMPTS
from dapt_operator.api.v1alpha1.base import Cleaned, Digest, Integer, Message, ShortText, Text, Time
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.progress import (
    PreflightStatus,
    ProgressStatus,
    StageProgress,
    StatusBase,
)

MAX_CANDIDATES = 100
MAX_STAGES = 30
MAX_STATUS_BYTES = 256 * 1024
StageState = Literal["Pending", "Running", "Succeeded", "Failed", "Suspended"]
MAX_WARNINGS = 32
Warnings = Annotated[tuple[Text, ...], Field(strict=False, max_length=MAX_WARNINGS)]


class Condition(StatusBase):
    """One aspect of the state, in Kubernetes' usual form."""

    type: ShortText
    """Aspect that the condition describes."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: ShortText
    """Why, as one word of a fixed list."""
    message: Annotated[str, Field(max_length=32_768), Cleaned] = ""
    """Why, in one sentence with the object, the number, the limit and the next step."""
    last_transition_time: Time
    """Time at which `status` last changed."""
    observed_generation: Integer | None = None
    """Generation of the spec that the condition describes."""


class ResolvedModel(StatusBase):
    """The base model as prepare has read it."""

    source: Text | None = None
    """The source as the spec has it."""
    revision: Digest | None = None
    """Commit that a moving revision was resolved to."""
    digest: Digest | None = None
    """SHA-256 over the model's files."""


class ResolvedTuningData(StatusBase):
    """Examples or pairs as they were prepared."""

    records: Integer | None = None
    """Examples or pairs that can be learned from."""
    digest: Digest | None = None
    """Beginning of the SHA-256 of the prepared records, as the model card has it."""


class Resolved(StatusBase):
    """Values that were chosen for absent fields, and defaults that depend on other fields."""

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
    """Tokens per training sequence."""
    world_size: Integer | None = None
    """Ranks of pretraining."""
    global_batch_size: Integer | None = None
    """Sequences per optimizer step."""
    micro_batch_size: Integer | None = None
    """Sequences per rank in one forward pass."""
    gradient_accumulation_steps: Integer | None = None
    """Forward passes per optimizer step."""
    zero_stage: Integer | None = None
    """ZeRO stage, 0 to 3."""
    offload: ShortText | None = None
    """What is kept in CPU memory between uses: none, optimizer or all."""
    gradient_checkpointing: bool | None = None
    """Whether activations are recomputed in the backward pass."""
    precision: ShortText | None = None
    """Number format of forward and backward."""
    total_tokens: Integer | None = None
    """Training tokens of the budget."""
    total_steps: Integer | None = None
    """Optimizer steps of the budget."""
    measuring: Annotated[tuple[Text, ...], Field(strict=False, max_length=4)] = ()
    """How the stages that measure divide the model over their ranks. Absent: it is not prepared yet."""
    finetuning_data: ResolvedTuningData | None = None
    """The examples of fine-tuning. Absent: there are none, or they are not prepared yet."""
    preference_data: ResolvedTuningData | None = None
    """The pairs of preference tuning. Absent: there are none, or they are not prepared yet."""


class Frozen(StatusBase):
    """Blocks of the spec that may no longer change, since the stage that needs them has started or has succeeded."""

    seed: bool | None = None
    """spec.seed, with prepare."""
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
    """spec.output, once the model is published."""


class Digests(StatusBase):
    """Digests by which a change from outside is noticed, and the owner of the adaptation."""

    profile: Digest | None = None
    """SHA-256 of the copy of the profile."""
    config: Digest | None = None
    """SHA-256 of the configuration of the running stage."""
    owner: Digest | None = None
    """Name of the operator instance that owns the adaptation."""
    run: Digest | None = None
    """SHA-256 of the whole run, as published with the model."""
    blocks: Annotated[Mapping[str, ShortText], Field(max_length=16)] = Field(default_factory=dict)
    """Once it has ended: beginning of the SHA-256 of each block of the spec that decided the result."""


class PlanSummary(StatusBase):
    """The estimate of what the adaptation needs."""

    tokens: Integer | None = None
    """Training tokens."""
    steps: Integer | None = None
    """Optimizer steps."""
    gpu_hours: float | None = None
    """Accelerator-hours over all stages."""
    memory_gib_per_gpu: float | None = None
    """Memory of one accelerator, in GiB."""
    warnings: Warnings = ()
    """What to consider before the money is spent."""


class StageStatus(StatusBase):
    """One run of a stage."""

    name: ShortText
    """Name of the run."""
    kind: ShortText
    """Kind of stage."""
    attempt: Integer = 1
    """Attempt of pretraining that the run belongs to."""
    try_number: Integer = 1
    """Number of times that the stage was started, including this one. In YAML: try."""
    state: StageState = "Pending"
    """State of the run."""
    candidate: ShortText | None = None
    """Id of the candidate that an evaluation measures."""
    run_key: Digest | None = None
    """Identity of the run, from which the names of its objects are derived."""
    reason: ShortText | None = None
    """Cause of a failure or of waiting, as one word."""
    exit_code: Integer | None = None
    """Exit code that decided the cause."""
    start_time: Time | None = None
    """Time at which its first process started."""
    completion_time: Time | None = None
    """Time at which it ended."""
    message: Message | None = None
    """Result, cause of failure or reason for waiting, in one sentence."""
    progress: StageProgress | None = None
    """How far it is. Absent: it does not run, it has reported nothing yet, or it is pretraining: status.progress."""
    last_log_lines: Annotated[tuple[Text, ...], Field(strict=False, max_length=20)] = ()
    """Last log lines of the rank that failed, of the newest run that did; at most 20 and 2 KiB."""


class TaskScore(StatusBase):
    """A candidate's result on one task or probe set, against the base model."""

    score: float
    """Score, 0 to 1."""
    change_points: float | None = None
    """Points (hundredths) gained over the base model; negative when lost."""
    standard_error_points: float | None = None
    """Paired standard error of the change, in points."""


class CandidateStatus(StatusBase):
    """One checkpoint, average or interpolation, with its measurements."""

    id: ShortText
    """Id of the candidate: a1-s4560, a1-avg3 or a1-s4560-i0.8."""
    attempt: Integer | None = None
    """Attempt that it comes from."""
    step: Integer | None = None
    """Optimizer step at which it was saved. Absent: it is an average or interpolation."""
    digest: Digest | None = None
    """SHA-256 of its weights."""
    domain_perplexity: float | None = None
    """Perplexity of the domain's held-out text: exp(negative log-likelihood / base-tokenizer tokens)."""
    general_perplexity: float | None = None
    """Perplexity of the general held-out text, computed in the same way."""
    forgetting: float | None = None
    """General perplexity divided by the base model's, minus 1."""
    forgetting_standard_error: float | None = None
    """Standard error of forgetting on half B, which the gates judge, by document. Absent: it is not known."""
    domain_perplexity_decrease: float | None = None
    """1 minus domain perplexity divided by the base model's."""
    domain_perplexity_decrease_standard_error: float | None = None
    """Standard error of the decrease on half B, which the gates judge, by document. Absent: it is not known."""
    gain: float | None = None
    """Gain by perplexity alone, which is known of every candidate: weights.domainPerplexity x fall of ln domain
    perplexity on both halves. With a weight of 0: the fall itself."""
    gain_with_tasks: float | None = None
    """The whole gain, with the domain tasks. Absent: they were not measured, or there are none."""
    tasks: Annotated[Mapping[str, TaskScore], Field(max_length=256)] = Field(default_factory=dict)
    """Results by task."""
    passes: bool | None = None
    """Whether it passes the gates."""
    message: Message | None = None
    """Why it does not pass."""

    @property
    def whole_gain(self) -> float | None:
        """The gain that `status.gain` has too: with the domain tasks where they were measured."""
        return self.gain if self.gain_with_tasks is None else self.gain_with_tasks


class SelectedStatus(StatusBase):
    """The chosen candidate."""

    id: ShortText
    """Id of the candidate."""
    reason: Text
    """Why it was chosen."""
    digest: Digest | None = None
    """SHA-256 of its weights."""


class AttemptStatus(StatusBase):
    """One pretraining; a rollback starts the next."""

    number: Integer
    """Number of the attempt, 1 for the first."""
    learning_rate: float | None = None
    """Peak learning rate."""
    replay_fraction: float | None = None
    """Share of training tokens that is general text."""
    start: ShortText | None = None
    """Id of the candidate that it started from. Absent: the base model."""
    total_steps: Integer | None = None
    """Optimizer steps of its budget."""
    ended_by: ShortText | None = None
    """Why it ended, as one word. Absent: it is running."""
    reason: Text | None = None
    """Why it was given up for the next attempt, or how it ended, in one sentence."""


class Usage(StatusBase):
    """What the adaptation has cost so far."""

    gpu_hours: float | None = None
    """Accelerator-hours over all stages, attempts and evaluations."""
    cost: float | None = None
    """These accelerator-hours at the profile's accelerator.pricePerHour, in its currency. Absent: it has no price."""
    goodput: float | None = None
    """Share of the time in which pretraining held its accelerators that went into optimizer steps that count:
    loading, saving, measuring and steps that were repeated after a fault do not."""
    restarts: Integer | None = None
    """New runs after faults."""


class OutputStatus(StatusBase):
    """The published model."""

    destination: Text | None = None
    """Where the model is."""
    digest: Digest | None = None
    """Digest of the run, as in the manifest that is published with the model."""
    deployable: bool | None = None
    """Whether the model is for deployment: false after continued pre-training alone."""


class DomainAdaptationStatus(StatusBase):
    """The observed state of an adaptation."""

    observed_generation: Integer | None = None
    """Generation of the spec that was last acted on."""
    phase: ShortText | None = None
    """Summary of the conditions, for people; nothing reads it back."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            strict=False,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """Conditions; all types are present from the first reconcile."""
    forgetting: float | None = None
    """General perplexity divided by the base model's, minus 1, of the selected candidate, else of the latest."""
    gain: float | None = None
    """Gain of the same candidate: with the domain tasks once they were measured."""
    gates: Annotated[Mapping[str, bool], Field(max_length=16)] | None = None
    """Whether the selected candidate, else the latest one, passes each gate that has judged it."""
    task_drop_points: Annotated[Mapping[str, float], Field(max_length=100)] | None = None
    """Points that the same candidate lost on each general task; negative: it won."""
    attempt: Integer | None = None
    """Number of the newest attempt."""
    progress: ProgressStatus | None = None
    """Progress of pretraining."""
    preflight: PreflightStatus | None = None
    """What the ranks of a training stage measured before they loaded the model."""
    resolved: Resolved | None = None
    """Values that were chosen for absent fields."""
    frozen: Frozen | None = None
    """Blocks of the spec that may no longer change."""
    digests: Digests | None = None
    """Digests by which a change from outside is noticed."""
    plan: PlanSummary | None = None
    """The estimate of what the adaptation needs."""
    stages: Annotated[tuple[StageStatus, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    """Runs of stages, oldest first."""
    candidates: Annotated[tuple[CandidateStatus, ...], Field(strict=False, max_length=MAX_CANDIDATES)] = ()
    """Candidates with their measurements."""
    selected: SelectedStatus | None = None
    """The chosen candidate."""
    attempts: Annotated[tuple[AttemptStatus, ...], Field(strict=False, max_length=MAX_ATTEMPTS)] = ()
    """Attempts of pretraining, in their order."""
    usage: Usage | None = None
    """What the adaptation has cost so far."""
    output: OutputStatus | None = None
    """The published model."""
    ledger: Ledger | None = None
    """The operator's own record of runs; not meant for users."""
