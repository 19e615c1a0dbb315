"""Estimates what an adaptation will need before it runs: tokens, steps, memory, accelerator-hours, disk, warnings.

Works without a model (then tokens and batches alone), with one, and with the counts of a finished prepare. Every
number comes with its formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dapt_contract.inputs.model_size import checkpoint_size, trainable_parameters
from dapt_contract.measure import Measure
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.validation.pod_defaults import lifted_restrictions
from dapt_operator.number_format import count, epochs_text
from dapt_operator.plan.sizing import resolve
from dapt_operator.plan.sizing.batch_size import pretraining_batch_size
from dapt_operator.plan.sizing.compute import ComputeRate, accelerator_rate
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.model_fit.batch import Batch, BatchRequest, check_pretraining_batch, fit_batch
from dapt_operator.plan.sizing.model_fit.measuring import measuring_plans
from dapt_operator.plan.sizing.model_fit.memory import GIB, MemoryParts
from dapt_operator.plan.sizing.stage_hours import StageHours, stage_hours
from dapt_operator.plan.sizing.stage_needs import StageNeed, TrainedStages, stage_needs
from dapt_operator.plan.sizing.tuning_estimate import (
    UNKNOWN_SIZE,
    TuningEstimate,
    TuningSize,
    tuning_estimates,
)
from dapt_operator.plan.sizing.warnings import (
    WarningFacts,
    expectation,
    few_steps_warnings,
    sequence_warnings,
    volume_warnings,
    warnings,
)
from dapt_operator.plan.sizing.work_volume import WorkVolume, work_volume


@dataclass(frozen=True)
class EstimateFacts:
    """What is known of model and data when the estimate is made; None: not known yet."""

    model: ModelFacts | None = None
    """The base model, or the one with a grown tokenizer."""
    domain_tokens: int | None = None
    """Tokens of training, counted or guessed; None: the sum of `maxTokens` where every source has one."""
    general_tokens: int | None = None
    """The same of the general side."""
    base: Measure | None = None
    """The measured base model, for the replay share."""
    sequence_length_tokens: int | None = None
    """What prepare packed; None: the spec's, else the model's limit up to 4,096."""
    instructions: TuningSize = UNKNOWN_SIZE
    """Examples of fine-tuning."""
    preferences: TuningSize = UNKNOWN_SIZE
    """Pairs of preference tuning."""
    items: Mapping[str, int] = field(default_factory=dict)
    """Items of the tasks of whose items the number is known, by name."""
    cpu_rate: ComputeRate | None = None
    """What a process of a CPU profile computes; None: by the profile's peak, else not known."""


@dataclass(frozen=True)
class Estimate:
    """What an adaptation will need; a number is None where it cannot be known yet."""

    method: str
    """`full` or `lora`."""
    learning_rate: float
    replay_fraction: float
    replay_is_assumed: bool
    """Whether the share for a weak shift is assumed, since the base model was not measured yet."""
    sequence_length_tokens: int
    world_size: int
    global_batch_size: int
    domain_tokens: int | None
    total_tokens: int | None
    total_steps: int | None
    checkpoints: int | None
    batch: Batch | None
    """Micro-batch, accumulation, ZeRO stage, precision and memory by parts."""
    memory_limit_bytes: float
    """Memory of one accelerator."""
    needs: tuple[StageNeed, ...]
    """What each stage takes; empty without a model, and without those stages that are refused."""
    trainable_parameters: int | None
    tuning: tuple[TuningEstimate, ...]
    """Fine-tuning and preference tuning, as far as the spec asks for them."""
    stages: tuple[StageHours, ...]
    gpu_hours: float | None
    """Over all stages; 0 for a profile of kind cpu, None when peak or tokens are unknown."""
    clock_hours: float | None
    """Hours of pretraining on the clock."""
    total_clock_hours: float | None
    """Hours of all stages on the clock."""
    rate: ComputeRate | None
    """What one accelerator or process computes; None: not known."""
    cost: float | None
    checkpoint_bytes: float | None
    """Bytes that all checkpoints of one attempt take on the work volume."""
    volume: WorkVolume | None
    """What all stages of one attempt write to the work volume, against its size; None without a model."""
    formulas: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...] = ()
    """What the numbers rule out; a run would be refused with these messages."""
    expectation: str = ""

    @property
    def memory(self) -> MemoryParts | None:
        """Parts of one rank's memory, in bytes."""
        return self.batch.memory if self.batch else None

    @property
    def memory_gib(self) -> float | None:
        """Memory of one rank, in GiB."""
        return self.batch.memory.total / GIB if self.batch else None


def estimate(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, known: EstimateFacts = EstimateFacts()
) -> Estimate:
    """Return the estimate from what is known."""
    # 1. what prepare has counted, or what stands for it until then
    problems: list[str] = []
    domain_tokens = _limit_of_sources(spec, "domain") if known.domain_tokens is None else known.domain_tokens
    general_tokens = (
        _limit_of_sources(spec, "general") if known.general_tokens is None else known.general_tokens
    )
    length = known.sequence_length_tokens or _sequence_length(spec, known.model, problems)
    measured_replay = resolve.replay_fraction(spec, known.base)
    replay = resolve.WEAK_REPLAY_FRACTION if measured_replay is None else measured_replay
    # 2. steps, and the batch that fits
    layout = resolve.pretrain_layout(spec, profile)
    lora = resolve.pretraining_lora(spec)
    model = grown_model(known.model, spec) if known.model else None
    steps = resolve.budget_steps(
        spec,
        ranks=layout.world_size,
        domain_tokens=domain_tokens,
        replay=replay,
        sequence_length_tokens=length,
    )
    batch_size = (
        steps.global_batch_size
        if steps is not None
        else pretraining_batch_size(spec, layout.world_size, total_tokens=None, sequence_length_tokens=length)
    )
    batch = _batch(spec, profile, model, (batch_size, length), problems)
    tuning = tuning_estimates(
        spec, profile, model, packed_tokens=length, sizes=(known.instructions, known.preferences)
    )
    problems += [problem for stage in tuning for problem in stage.problems]
    measuring = measuring_plans(spec, profile, model, length) if model is not None else None
    problems += measuring.problems if measuring is not None else ()
    # 3. hours and money
    rate = None if model is None else accelerator_rate(profile, model, length, known.cpu_rate)
    stages: tuple[StageHours, ...] = ()
    if model is not None and rate is not None and steps is not None:
        pretraining = (batch, layout.world_size)
        stages = stage_hours(
            spec, model, rate, steps=steps, pretraining=pretraining, tuning=tuning, items=known.items
        )
    hours = _total_hours(profile, stages)
    checkpoint_bytes = _checkpoint_bytes(spec, profile, model, steps)
    needs: tuple[StageNeed, ...] = ()
    volume = None
    if model is not None and measuring is not None:
        corpus_tokens = (
            None if domain_tokens is None or general_tokens is None else domain_tokens + general_tokens
        )
        trained = TrainedStages(batch, length, checkpoint_bytes, tuning, corpus_tokens)
        needs = stage_needs(spec, profile, model, measuring.plans, trained)
        volume = work_volume(spec, profile, model, needs, len(steps.checkpoint_steps) if steps else None)
        problems += volume.problems
    price = profile.accelerator.price_per_hour
    warning_facts = WarningFacts(
        model=model,
        domain_tokens=domain_tokens,
        general_tokens=general_tokens,
        total_tokens=steps.total_tokens if steps else None,
        replay_fraction=replay,
        shift_nats=None if known.base is None else resolve.shift_nats(known.base),
        items=known.items,
    )
    return Estimate(
        method="full" if lora is None else "lora",
        learning_rate=resolve.learning_rate(
            spec.pretraining.method, spec.pretraining.optimizer.learning_rate
        ),
        replay_fraction=replay,
        replay_is_assumed=measured_replay is None,
        sequence_length_tokens=length,
        world_size=layout.world_size,
        global_batch_size=batch_size,
        domain_tokens=domain_tokens,
        total_tokens=steps.total_tokens if steps else None,
        total_steps=steps.total_steps if steps else None,
        checkpoints=len(steps.checkpoint_steps) if steps else None,
        batch=batch,
        memory_limit_bytes=profile.accelerator.memory_gib * GIB,
        needs=needs,
        trainable_parameters=trainable_parameters(model, lora) if model else None,
        tuning=tuning,
        stages=stages,
        gpu_hours=hours,
        clock_hours=stages[0].hours / layout.world_size if stages else None,
        total_clock_hours=sum(stage.hours / stage.ranks for stage in stages) if stages else None,
        rate=rate,
        cost=hours * price if hours is not None and price is not None else None,
        checkpoint_bytes=checkpoint_bytes,
        volume=volume,
        formulas=(
            *_token_formulas(spec, steps, domain_tokens, replay, length),
            *(formula for stage in tuning for formula in stage.formulas),
            *(stage.formula for stage in stages),
        ),
        warnings=(
            *warnings(spec, profile, warning_facts),
            *few_steps_warnings({"pretraining": steps.total_steps} if steps else {}),
            *few_steps_warnings(
                {stage.name: stage.total_steps for stage in tuning},
                at_most=frozenset(stage.name for stage in tuning if not stage.counts_sequences),
            ),
            *(warning for stage in tuning for warning in stage.warnings),
            *lifted_restrictions(profile),
            *sequence_warnings(spec, layout),
            *volume_warnings(spec, profile),
            *(volume.warnings if volume is not None else ()),
        ),
        problems=tuple(problems),
        expectation=expectation(domain_tokens),
    )


def _total_hours(profile: AdaptationProfileSpec, stages: tuple[StageHours, ...]) -> float | None:
    if profile.accelerator.kind == "cpu":
        return 0.0
    return sum(stage.hours for stage in stages) if stages else None


def _limit_of_sources(spec: DomainAdaptationSpec, side: str) -> int | None:
    """Return the sum of `maxTokens` of a side; None where a source has none."""
    sources = spec.corpus.domain if side == "domain" else spec.corpus.general
    limits = [source.max_tokens for source in sources]
    return sum(limit for limit in limits if limit is not None) if all(limits) else None


def _sequence_length(spec: DomainAdaptationSpec, model: ModelFacts | None, problems: list[str]) -> int:
    """Return the sequence length before prepare has packed; one that the model cannot read is added to `problems`."""
    requested = spec.corpus.sequence_length
    longest = model.max_positions if model else resolve.LARGEST_SEQUENCE_TOKENS
    if requested is not None and model is not None and requested > longest:
        problems.append(
            f"spec.corpus.sequenceLength is {requested}, longer than the model's {longest} positions:"
            f" write at most {longest}"
        )
    return requested or min(longest, resolve.LARGEST_SEQUENCE_TOKENS)


def _batch(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    model: ModelFacts | None,
    size: tuple[int, int],
    problems: list[str],
) -> Batch | None:
    """Return pretraining's batch; None without a model, or where it is refused, which is added to `problems`.

    size: sequences of a step, and tokens of a sequence.
    """
    layout = resolve.pretrain_layout(spec, profile)
    try:
        if model is None:
            check_pretraining_batch(spec, layout)
            return None
        request = BatchRequest(
            block="pretraining",
            layout=layout,
            model=model,
            lora=resolve.pretraining_lora(spec),
            global_batch_size=size[0],
            micro_batch_size=spec.pretraining.micro_batch_size,
            sequence_length_tokens=size[1],
        )
        return fit_batch(request, spec, profile)
    except resolve.RefusedError as refused:
        problems.append(refused.message)
        return None


def _checkpoint_bytes(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    model: ModelFacts | None,
    steps: resolve.Steps | None,
) -> float | None:
    """Return the bytes of all checkpoints of one attempt, as the trainer checks them against the free space."""
    if model is None or steps is None:
        return None
    size = checkpoint_size(model, resolve.pretraining_lora(spec), resolve.training_precision(spec, profile))
    return float(size.total_bytes(len(steps.checkpoint_steps)))


def _token_formulas(
    spec: DomainAdaptationSpec,
    steps: resolve.Steps | None,
    domain_tokens: int | None,
    replay: float,
    length: int,
) -> tuple[str, ...]:
    if steps is None:
        return ("tokens: unknown until prepared (no source has been counted and the budget is in epochs)",)
    budget = spec.pretraining.budget
    if budget.epochs is not None and domain_tokens is not None:
        tokens = (
            f"tokens: {count(domain_tokens)} domain tokens x {epochs_text(budget.epochs)} / (1 - {replay:g} replay)"
            f" = {count(steps.total_tokens)}"
        )
    else:
        tokens = f"tokens: {count(steps.total_tokens)}, as the budget says"
    return (
        tokens,
        f"steps: {count(steps.total_tokens)} tokens / ({steps.global_batch_size} sequences"
        f" x {length} tokens) = {steps.total_steps}",
    )
