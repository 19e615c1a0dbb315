"""What an adaptation will need, before anything runs: tokens, steps, memory, accelerator-hours, disk, warnings.

Works without a model (then tokens and batches alone), with one, and with the counts of a finished prepare. Every
number comes with its formula.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dapt_contract.held_out import most_tokens
from dapt_contract.measure import Measure
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.launchers.render.pod import lifted_restrictions
from dapt_operator.plan.sizing import compute, resolve
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.memory import GIB, MemoryParts, trainable_parameters
from dapt_operator.plan.sizing.resolve import pretraining_lora
from dapt_operator.plan.sizing.warnings import count, expectation, volume_warnings, warnings

ASSUMED_ITEMS = 1000
"""Items of a task without a limit, as far as the estimate knows."""
ASSUMED_EXAMPLE_TOKENS = 100
"""Tokens of one few-shot example or item; four choices score four of them."""
CHOICES = 4


@dataclass(frozen=True)
class StageHours:
    """Accelerator-hours of one kind of stage."""

    kind: str
    hours: float
    formula: str


@dataclass(frozen=True)
class Estimate:
    """None where it cannot be known yet."""

    method: str
    """`full` or `lora`."""
    learning_rate: float
    replay_fraction: float
    replay_is_assumed: bool
    """The base model was not measured yet: the share for a weak shift is assumed."""
    sequence_length_tokens: int
    world_size: int
    global_batch_size: int
    domain_tokens: int | None
    total_tokens: int | None
    total_steps: int | None
    checkpoints: int | None
    batch: resolve.Batch | None
    """Micro-batch, accumulation, ZeRO stage, precision and memory by parts."""
    memory_limit_bytes: float
    trainable_parameters: int | None
    stages: tuple[StageHours, ...]
    gpu_hours: float | None
    """Over all stages; 0 for a profile of kind cpu, None when peak or tokens are unknown."""
    clock_hours: float | None
    """Of pretraining."""
    cost: float | None
    checkpoint_bytes: float | None
    """On the work volume, all of pretraining's."""
    formulas: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...] = field(default=())
    """What the numbers rule out; a run would be refused with these."""
    expectation: str = ""

    @property
    def memory(self) -> MemoryParts | None:
        """Parts of one rank's memory."""
        return self.batch.memory if self.batch else None

    @property
    def memory_gib(self) -> float | None:
        """Their sum, in GiB."""
        return self.batch.memory.total / GIB if self.batch else None


def estimate(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    model: ModelFacts | None = None,
    domain_tokens: int | None = None,
    *,
    general_tokens: int | None = None,
    base: Measure | None = None,
    sequence_length_tokens: int | None = None,
    instruction_tokens: int | None = None,
) -> Estimate:
    """The estimate from what is known.

    Args:
        spec: what is asked for.
        profile: what there is.
        model: facts of the base model; None: not looked at.
        domain_tokens: of training, counted or guessed; None: the sum of `maxTokens` where every source has one.
        general_tokens: the same of the general side.
        base: the measured base model, for the replay share.
        sequence_length_tokens: what prepare packed; None: the spec's, else the model's limit up to 4,096.
        instruction_tokens: of one pass over the fine-tuning data.
    """
    problems: list[str] = []
    domain_tokens = _known_tokens(spec, "domain") if domain_tokens is None else domain_tokens
    general_tokens = _known_tokens(spec, "general") if general_tokens is None else general_tokens
    length = sequence_length_tokens or _length(spec, model, problems)
    measured = resolve.replay_fraction(spec, base)
    replay = resolve.WEAK_REPLAY_FRACTION if measured is None else measured
    gang = resolve.pretrain_gang(spec, profile)
    lora = pretraining_lora(spec)
    model = grown_model(model, spec) if model else None
    steps = resolve.budget_steps(
        spec, domain_tokens=domain_tokens, replay=replay, sequence_length_tokens=length
    )
    batch = _batch(spec, profile, model, gang, length, problems)
    training = _Compute(spec, profile, model, gang, batch, length, steps)
    stages = training.stages(instruction_tokens)
    hours = _total_hours(profile, stages)
    price = profile.accelerator.price_per_hour
    return Estimate(
        method="full" if lora is None else "lora",
        learning_rate=resolve.learning_rate(
            spec.pretraining.method, spec.pretraining.optimizer.learning_rate
        ),
        replay_fraction=replay,
        replay_is_assumed=measured is None,
        sequence_length_tokens=length,
        world_size=gang.world_size,
        global_batch_size=spec.pretraining.global_batch_size,
        domain_tokens=domain_tokens,
        total_tokens=steps.total_tokens if steps else None,
        total_steps=steps.total_steps if steps else None,
        checkpoints=len(steps.checkpoint_steps) if steps else None,
        batch=batch,
        memory_limit_bytes=profile.accelerator.memory_gib * GIB,
        trainable_parameters=trainable_parameters(model, lora) if model else None,
        stages=stages,
        gpu_hours=hours,
        clock_hours=stages[0].hours / gang.world_size if stages else None,
        cost=hours * price if hours is not None and price is not None else None,
        checkpoint_bytes=_checkpoint_bytes(spec, model, batch, steps),
        formulas=(*_token_formula(spec, steps, domain_tokens, replay, length), *(s.formula for s in stages)),
        warnings=warnings(
            spec,
            profile,
            model=model,
            domain_tokens=domain_tokens,
            general_tokens=general_tokens,
            total_tokens=steps.total_tokens if steps else None,
            replay_fraction=replay,
            shift=None if base is None else resolve.shift_nats(base),
        )
        + lifted_restrictions(profile)
        + volume_warnings(spec, profile),
        problems=tuple(problems),
        expectation=expectation(domain_tokens),
    )


@dataclass(frozen=True)
class _Compute:
    """Accelerator-hours by stage."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    model: ModelFacts | None
    gang: resolve.RankLayout
    batch: resolve.Batch | None
    length: int
    steps: resolve.Steps | None

    def stages(self, instruction_tokens: int | None) -> tuple[StageHours, ...]:
        """Pretraining first; nothing where peak, model or tokens are unknown."""
        peak = self.profile.accelerator.peak_tflops
        if peak is None or self.model is None or self.steps is None:
            return ()
        recompute = self.batch.gradient_checkpointing if self.batch else False
        found = [self._training("pretrain", self.steps.total_tokens, peak, recompute)]
        if self.spec.finetuning is not None and instruction_tokens is not None:
            tokens = instruction_tokens * (self.spec.finetuning.budget.epochs or 1.0)
            found.append(self._training("finetune", tokens, peak, recompute))
        found.append(self._measuring(peak))
        return tuple(found)

    def _training(self, kind: str, tokens: float, peak: float, recompute: bool) -> StageHours:
        assert self.model is not None
        used = compute.utilization(self.model, self.length)
        flops = compute.training_flops(self.model, tokens, recompute=recompute)
        hours = compute.accelerator_hours(flops, peak, used.fraction)
        again = " x 4/3 (recomputed activations)" if recompute else ""
        lora = (
            "; LoRA saves memory, at most a third of the compute" if self.spec.pretraining.method.lora else ""
        )
        return StageHours(
            kind,
            hours,
            f"{kind}: 6 x {count(self.model.parameters)} parameters x {count(tokens)} tokens{again} = {flops:.3g} FLOP;"
            f" / ({peak:g} TFLOP/s x {used.fraction:.1%} of the peak, {used.source})"
            f" = {hours:.3g} accelerator-hours{lora}",
        )

    def _measuring(self, peak: float) -> StageHours:
        assert self.model is not None
        assert self.steps is not None
        wanted = self.spec.evaluation
        kept = self.spec.corpus.held_out
        most = kept.max_tokens or most_tokens(self.steps.total_tokens, len(self.steps.checkpoint_steps))
        held_out = 2.0 * min(most, self.steps.total_tokens * kept.fraction)
        tasks = (*wanted.domain.tasks, *wanted.general.tasks)
        shots = [wanted.few_shot if task.few_shot is None else task.few_shot for task in tasks]
        items = wanted.limit or ASSUMED_ITEMS
        scored = sum(items * CHOICES * ASSUMED_EXAMPLE_TOKENS * (shot + 1) for shot in shots)
        models = 3  # base, best candidate, finished model
        tokens = held_out * (models + len(self.steps.checkpoint_steps)) + scored * models
        flops = compute.measuring_flops(self.model, tokens)
        hours = compute.accelerator_hours(flops, peak, compute.MEASURING_MFU)
        return StageHours(
            "measure",
            hours,
            f"measure: 2 x {count(self.model.parameters)} parameters x {count(tokens)} tokens (held-out text of"
            f" {models} models and {len(self.steps.checkpoint_steps)} checkpoints, items of {len(tasks)} tasks)"
            f" = {flops:.3g} FLOP; / ({peak:g} TFLOP/s x {compute.MEASURING_MFU:.0%}, assumed)"
            f" = {hours:.3g} accelerator-hours",
        )


def _total_hours(profile: AdaptationProfileSpec, stages: tuple[StageHours, ...]) -> float | None:
    if profile.accelerator.kind == "cpu":
        return 0.0
    return sum(stage.hours for stage in stages) if stages else None


def _known_tokens(spec: DomainAdaptationSpec, side: str) -> int | None:
    sources = spec.corpus.domain if side == "domain" else spec.corpus.general
    limits = [source.max_tokens for source in sources]
    return sum(limit for limit in limits if limit is not None) if all(limits) else None


def _length(spec: DomainAdaptationSpec, model: ModelFacts | None, problems: list[str]) -> int:
    asked = spec.corpus.sequence_length
    longest = model.max_positions if model else resolve.LARGEST_SEQUENCE_TOKENS
    if asked is not None and model is not None and asked > longest:
        problems.append(
            f"spec.corpus.sequenceLength is {asked}, longer than the model's {longest} positions:"
            f" write at most {longest}"
        )
    return asked or min(longest, resolve.LARGEST_SEQUENCE_TOKENS)


def _batch(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    model: ModelFacts | None,
    gang: resolve.RankLayout,
    length: int,
    problems: list[str],
) -> resolve.Batch | None:
    try:
        if model is None:
            resolve.check_batch(spec, gang)
            return None
        return resolve.fit_batch(
            model,
            spec,
            profile,
            gang,
            stage="pretraining",
            lora=pretraining_lora(spec),
            global_batch_size=spec.pretraining.global_batch_size,
            micro_batch_size=spec.pretraining.micro_batch_size,
            sequence_length_tokens=length,
        )
    except resolve.RefusedError as refused:
        problems.append(refused.message)
        return None


def _checkpoint_bytes(
    spec: DomainAdaptationSpec,
    model: ModelFacts | None,
    batch: resolve.Batch | None,
    steps: resolve.Steps | None,
) -> float | None:
    """Weights of every checkpoint, optimizer state (master weights and two moments, fp32) of the newest two."""
    if model is None or steps is None:
        return None
    trained = trainable_parameters(model, pretraining_lora(spec))
    element = 4 if batch is None or batch.precision == "fp32" else 2
    count_ = len(steps.checkpoint_steps)
    return float(trained * (element * count_ + 12 * min(2, count_)))


def _token_formula(
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
            f"tokens: {count(domain_tokens)} domain tokens x {budget.epochs:g} epochs / (1 - {replay:g} replay)"
            f" = {count(steps.total_tokens)}"
        )
    else:
        tokens = f"tokens: {count(steps.total_tokens)}, as the budget says"
    return (
        tokens,
        f"steps: {count(steps.total_tokens)} tokens / ({spec.pretraining.global_batch_size} sequences"
        f" x {length} tokens) = {steps.total_steps}",
    )
