"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dapt_contract.base import Contract
from dapt_contract.layout import MODEL as BASE_MODEL
from dapt_contract.layout import STAGES
from dapt_contract.metric import Measure
from dapt_contract.stages.blend import Blend, BlendConfig
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.evaluate import BaselineConfig, EvaluateConfig
from dapt_contract.stages.prepare import (
    InstructionSource,
    PreferenceSource,
    PrepareConfig,
    PrepareFacts,
    TrainingLength,
)
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.run import RunResources
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.plan import parts
from dapt_operator.plan.attempts import Attempt
from dapt_operator.plan.growth import grown_model
from dapt_operator.plan.resolve import (
    MAX_CHECKPOINTS,
    Batch,
    Gang,
    Steps,
    budget_steps,
    fit_batch,
    halved,
    pretrain_gang,
    replay_fraction,
)

BASE_REFERENCE = ModelReference(weights=BASE_MODEL)
BASELINE_LINEAGE = f"{STAGES}/baseline-a1"


@dataclass(frozen=True)
class StagePlan:
    """A stage that could run now."""

    stage: str
    kind: str
    attempt: int
    candidate: str | None
    config: Contract
    resources: RunResources
    secret_names: tuple[str, ...] = ()
    signs_checkpoints: bool = False
    claims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pretraining:
    """The resolved numbers of pretraining."""

    gang: Gang
    batch: Batch
    steps: Steps
    learning_rate: float
    replay_fraction: float
    sequence_length_tokens: int


def kinds(spec: DomainAdaptationSpec) -> tuple[str, ...]:
    """The stages of an adaptation in their order."""
    tuned = ("finetune",) if spec.finetuning is not None else ()
    aligned = ("align",) if spec.preference is not None else ()
    evaluated = ("evaluate",) if has_scores(spec) else ()
    blended = ("blend",) if has_blends(spec) else ()
    return ("prepare", "baseline", "pretrain", *blended, *evaluated, *tuned, *aligned, "verify", "publish")


def has_scores(spec: DomainAdaptationSpec) -> bool:
    """Whether anything besides the perplexities is measured."""
    wanted = spec.evaluation
    return bool(wanted.domain.tasks or wanted.general.tasks or wanted.probes.domain or wanted.probes.general)


def has_blends(spec: DomainAdaptationSpec) -> bool:
    """Whether averages or interpolations are tried."""
    return spec.selection.average_last > 1 or any(share < 1.0 for share in spec.selection.interpolate)


def prepare_stage(spec: DomainAdaptationSpec) -> StagePlan:
    """All reading of hubs and object stores."""
    corpus = spec.corpus
    tuning = spec.finetuning.data if spec.finetuning else ()
    preferred = spec.preference.data if spec.preference else ()
    budget = spec.pretraining.budget
    config = PrepareConfig(
        model_source=spec.model.source,
        domain=tuple(parts.text_source(source) for source in corpus.domain),
        general=tuple(parts.text_source(source) for source in corpus.general),
        held_out_fraction=corpus.held_out.fraction,
        held_out_max_tokens=corpus.held_out.max_tokens,
        training=TrainingLength(
            tokens=budget.tokens,
            steps=budget.steps,
            epochs=budget.epochs,
            checkpoints=spec.pretraining.checkpoints.count,
        ),
        sequence_length_tokens=corpus.sequence_length,
        document_boundaries=corpus.packing.document_boundaries,
        deduplicate=corpus.deduplicate,
        decontaminate=corpus.decontaminate,
        bad_records_max_fraction=corpus.bad_records.max_fraction,
        instructions=tuple(InstructionSource(source=s.source, format=s.format) for s in tuning),
        preferences=tuple(PreferenceSource(source=s.source) for s in preferred),
        tokenizer_extension=parts.tokenizer_extension(spec),
        tasks=parts.tasks(spec),
        probes=parts.probes(spec),
        evaluation_limit=spec.evaluation.limit,
        global_batch_size=spec.pretraining.global_batch_size,
        checkpoints_kept=min(
            spec.pretraining.checkpoints.count, spec.pretraining.budget.steps or MAX_CHECKPOINTS
        ),
        attempts=1 + (spec.gates.rollback.max_rollbacks if spec.gates.on_breach == "Rollback" else 0),
        trains_all_weights=spec.pretraining.method.lora is None,
        seed=spec.seed,
    )
    secrets = tuple(credential.secret_name for credential in spec.credentials if credential.use == "read")
    resources = parts.one_process(spec, spec.stage_resources.prepare)
    claims = parts.claims(parts.sources(spec))
    return StagePlan("prepare", "prepare", 1, None, config, resources, secret_names=secrets, claims=claims)


def baseline_stage(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, prepared: PrepareFacts
) -> StagePlan:
    """Measure the frozen base model."""
    config = BaselineConfig(model=BASE_REFERENCE, evaluation=parts.evaluation_config(spec, prepared))
    return StagePlan("baseline", "baseline", 1, None, config, parts.measuring(spec, profile, "baseline"))


def resolve_pretraining(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    base: Measure,
    attempt: Attempt,
    *,
    halvings: int = 0,
) -> Pretraining | None:
    """The numbers of an attempt; None when the micro-batch cannot be halved as often as that.

    Raises:
        RefusedError: the batch cannot be divided, or nothing fits into memory.
    """
    gang = pretrain_gang(spec, profile)
    replay = replay_fraction(spec, base)
    length = prepared.sequence_length_tokens
    steps = budget_steps(
        spec, domain_tokens=prepared.domain_tokens, replay=replay, sequence_length_tokens=length
    )
    assert replay is not None
    assert steps is not None
    batch = fit_batch(
        grown_model(prepared.model, spec, prepared.tokenizer),
        spec,
        profile,
        gang,
        stage="pretraining",
        lora=parts.pretraining_lora(spec),
        global_batch_size=spec.pretraining.global_batch_size,
        micro_batch_size=spec.pretraining.micro_batch_size,
        sequence_length_tokens=length,
    )
    smaller = halved(batch, halvings)
    if smaller is None:
        return None
    a_step = smaller.global_batch_size * length
    left = steps_left(steps, attempt.steps_before, a_step)
    return Pretraining(gang, smaller, left, attempt.learning_rate, attempt.replay_fraction, length)


def steps_left(steps: Steps, before: int, tokens_a_step: int) -> Steps:
    """What an attempt trains that starts after `before` steps of the budget: checkpoints about as far apart as in the
    whole of it, and at least two, since one reading tells nothing of a direction."""
    if before == 0:
        return steps
    total = max(1, steps.total_steps - before)
    count = math.ceil(len(steps.checkpoint_steps) * total / steps.total_steps)
    count = min(total, max(2, count))
    return Steps(
        max(1, steps.total_tokens - before * tokens_a_step),
        total,
        tuple(round(number * total / count) for number in range(1, count + 1)),
    )


def pretrain_stage(
    spec: DomainAdaptationSpec,
    numbers: Pretraining,
    base: Measure,
    attempt: Attempt,
    model: ModelReference,
    *,
    max_train_seconds: float | None = None,
) -> StagePlan:
    """Continued pre-training from `model`."""
    config = PretrainConfig(
        model=model,
        lora=parts.pretraining_lora(spec),
        total_steps=numbers.steps.total_steps,
        checkpoint_steps=numbers.steps.checkpoint_steps,
        sequence_length_tokens=numbers.sequence_length_tokens,
        document_boundaries=spec.corpus.packing.document_boundaries,
        global_batch_size=numbers.batch.global_batch_size,
        micro_batch_size=numbers.batch.micro_batch_size,
        replay_fraction=numbers.replay_fraction,
        optimizer=parts.optimizer(spec.pretraining.optimizer, numbers.learning_rate),
        schedule=parts.schedule(spec.pretraining.schedule),
        distribution=parts.distribution(numbers.batch),
        stop_rule=parts.stop_rule(spec),
        base_general_perplexity=base.general.both.perplexity,
        evaluation_context_length_tokens=numbers.sequence_length_tokens,
        max_train_seconds=max_train_seconds,
        regularization=parts.regularization(spec),
        earlier_phases=attempt.phases,
        seed=spec.seed,
    )
    return StagePlan(
        "pretrain",
        "pretrain",
        attempt.number,
        None,
        config,
        parts.gang_resources(numbers.gang, spec, None),
        signs_checkpoints=True,
    )


def blend_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    blends: tuple[Blend, ...],
    *,
    attempt: int,
    round_name: str | None = None,
) -> StagePlan:
    """Perplexities of averages and interpolations, all in one run.

    `round_name` tells a second run of an attempt, for blends that an edit of the selection asked for, from the first.
    """
    config = BlendConfig(blends=blends, context_length_tokens=prepared.sequence_length_tokens)
    resources = parts.measuring(spec, profile, "evaluate")
    return StagePlan("blend", "blend", attempt, round_name, config, resources)


def evaluate_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
    digest: str | None = None,
) -> StagePlan:
    """Measure one candidate; `digest`: of the weights that are to be scored, and no others."""
    config = EvaluateConfig(
        candidate=candidate,
        model=model,
        evaluation=parts.evaluation_config(spec, prepared),
        base_items_path=BASELINE_LINEAGE,
        expected_digest=digest,
    )
    return StagePlan(
        "evaluate", "evaluate", attempt, candidate, config, parts.measuring(spec, profile, "evaluate")
    )
