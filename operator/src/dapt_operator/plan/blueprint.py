"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapt_contract.base import Contract
from dapt_contract.layout import EXTENDED_MODEL, STAGES
from dapt_contract.layout import MODEL as BASE_MODEL
from dapt_contract.metric import Measure
from dapt_contract.stages.common import (
    ModelReference,
)
from dapt_contract.stages.evaluate import BaselineConfig, EvaluateConfig
from dapt_contract.stages.prepare import InstructionSource, PreferenceSource, PrepareConfig, PrepareFacts
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainConfig
from dapt_contract.stop_rule import StopRule
from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.run import RunResources
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.plan import parts
from dapt_operator.plan.resolve import (
    MAX_CHECKPOINTS,
    Batch,
    Gang,
    Steps,
    budget_steps,
    fit_batch,
    halved,
    learning_rate,
    lora_config,
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
    return ("prepare", "baseline", "pretrain", *evaluated, *tuned, *aligned, "verify", "publish")


def origin(spec: DomainAdaptationSpec) -> str:
    """Folder of the weights that pretraining starts from: the base model, extended where the tokenizer grows."""
    return BASE_MODEL if parts.tokenizer_extension(spec) is None else EXTENDED_MODEL


def has_scores(spec: DomainAdaptationSpec) -> bool:
    """Whether anything besides the perplexities is measured."""
    wanted = spec.evaluation
    return bool(wanted.domain.tasks or wanted.general.tasks or wanted.probes.domain or wanted.probes.general)


def prepare_stage(spec: DomainAdaptationSpec) -> StagePlan:
    """All reading of hubs and object stores."""
    corpus = spec.corpus
    tuning = spec.finetuning.data if spec.finetuning else ()
    preferred = spec.preference.data if spec.preference else ()
    config = PrepareConfig(
        model_source=spec.model.source,
        domain=tuple(parts.text_source(source) for source in corpus.domain),
        general=tuple(parts.text_source(source) for source in corpus.general),
        held_out_fraction=corpus.held_out.fraction,
        held_out_max_tokens=corpus.held_out.max_tokens,
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
        global_batch_size=spec.pretraining.global_batch_size,
        checkpoints_kept=min(
            spec.pretraining.checkpoints.count, spec.pretraining.budget.steps or MAX_CHECKPOINTS
        ),
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
    *,
    halvings: int = 0,
) -> Pretraining | None:
    """The numbers of pretraining; None when the micro-batch cannot be halved as often as that.

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
        prepared.model,
        spec,
        profile,
        gang,
        stage="pretraining",
        lora=lora_config(spec.pretraining.method),
        global_batch_size=spec.pretraining.global_batch_size,
        micro_batch_size=spec.pretraining.micro_batch_size,
        sequence_length_tokens=length,
    )
    smaller = halved(batch, halvings)
    if smaller is None:
        return None
    rate = learning_rate(spec.pretraining.method, spec.pretraining.optimizer.learning_rate)
    return Pretraining(gang, smaller, steps, rate, replay, length)


def pretrain_stage(
    spec: DomainAdaptationSpec,
    numbers: Pretraining,
    base: Measure,
    *,
    attempt: int = 1,
    max_train_seconds: float | None = None,
) -> StagePlan:
    """Continued pre-training."""
    gates = spec.gates
    config = PretrainConfig(
        model=ModelReference(weights=origin(spec)),
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
        stop_rule=StopRule(
            max_increase_fraction=gates.max_general_perplexity_increase,
            patience=gates.patience,
            hard_stop_factor=gates.hard_stop_factor,
            enforce_limit=gates.on_breach != "Warn",
        ),
        base_general_perplexity=base.general.both.perplexity,
        evaluation_context_length_tokens=numbers.sequence_length_tokens,
        max_train_seconds=max_train_seconds,
        regularization=parts.regularization(spec),
        seed=spec.seed,
    )
    return StagePlan(
        "pretrain",
        "pretrain",
        attempt,
        None,
        config,
        parts.gang_resources(numbers.gang, spec, None),
        signs_checkpoints=True,
    )


def candidate_model(spec: DomainAdaptationSpec, row: CheckpointFacts, attempt: int = 1) -> ModelReference:
    """Where a checkpoint's weights lie."""
    folder = f"{STAGES}/pretrain-a{attempt}/try-{row.try_number}/checkpoint-{row.step}"
    if spec.pretraining.method.lora is not None:
        return ModelReference(weights=origin(spec), adapters=(folder,), origin=origin(spec))
    return ModelReference(weights=folder, origin=origin(spec))


def evaluate_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
) -> StagePlan:
    """Measure one candidate."""
    config = EvaluateConfig(
        candidate=candidate,
        model=model,
        evaluation=parts.evaluation_config(spec, prepared),
        base_items_path=BASELINE_LINEAGE,
    )
    return StagePlan(
        "evaluate", "evaluate", attempt, candidate, config, parts.measuring(spec, profile, "evaluate")
    )
