"""Parts that the configurations of several stages share."""

from __future__ import annotations

from collections.abc import Iterable

from dapt_contract.envelope import digest_of
from dapt_contract.measure import Side
from dapt_contract.stages.common import (
    DistributionConfig,
    EvaluationConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TaskConfig,
)
from dapt_contract.stages.prepare import PrepareFacts, TextSource
from dapt_contract.stages.pretrain import RegularizationConfig
from dapt_contract.stop_rule import StopRule
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_corpus import Source
from dapt_operator.api.v1alpha1.spec_operation import CpuResources
from dapt_operator.api.v1alpha1.spec_training import Optimizer, Schedule
from dapt_operator.plan.sizing.resolve import Batch, RankLayout
from dapt_operator.stage_run import RunResources

CLAIM_SCHEME = "pvc://"


def run_digest(spec: DomainAdaptationSpec) -> str:
    """Digest of every block that decides the model, so that the same wish made anew finds its result."""
    blocks = spec.to_dict()
    deciding = (
        "model", "corpus", "pretraining", "evaluation", "gates", "selection", "finetuning", "preference", "seed",
    )  # fmt: skip
    return digest_of({name: blocks[name] for name in deciding if name in blocks})


def evaluation_config(spec: DomainAdaptationSpec, prepared: PrepareFacts) -> EvaluationConfig:
    """The same for every model of an adaptation; custom data lies on the work volume since prepare."""
    return EvaluationConfig(
        tasks=tasks(spec),
        probes=probes(spec),
        limit=spec.evaluation.limit,
        context_length_tokens=prepared.sequence_length_tokens,
        seed=spec.seed,
    )


def tasks(spec: DomainAdaptationSpec) -> tuple[TaskConfig, ...]:
    """Tasks of both sides, domain first."""
    sides: tuple[Side, ...] = ("domain", "general")
    return tuple(
        TaskConfig(
            name=task.name,
            side=side,
            source=task.source,
            few_shot=task.few_shot if task.few_shot is not None else spec.evaluation.few_shot,
        )
        for side in sides
        for task in (spec.evaluation.domain if side == "domain" else spec.evaluation.general).tasks
    )


def probes(spec: DomainAdaptationSpec) -> tuple[ProbeConfig, ...]:
    """Probe sets of both sides, named by side and place."""
    sets = spec.evaluation.probes
    domain = [
        ProbeConfig(name=f"probes-domain-{i}", side="domain", source=s.source)
        for i, s in enumerate(sets.domain)
    ]
    general = [
        ProbeConfig(name=f"probes-general-{i}", side="general", source=s.source)
        for i, s in enumerate(sets.general)
    ]
    return (*domain, *general)


def sources(spec: DomainAdaptationSpec) -> tuple[str, ...]:
    """Every place that prepare reads."""
    evaluation = spec.evaluation
    tasks = (*evaluation.domain.tasks, *evaluation.general.tasks)
    probes = (*evaluation.probes.domain, *evaluation.probes.general)
    return (
        spec.model.source,
        *(source.source for source in (*spec.corpus.domain, *spec.corpus.general)),
        *(task.source for task in tasks if task.source is not None),
        *(probe.source for probe in probes),
        *(source.source for source in (spec.finetuning.data if spec.finetuning else ())),
        *(source.source for source in (spec.preference.data if spec.preference else ())),
    )


def claims(places: Iterable[str]) -> tuple[str, ...]:
    """Names of the claims that `pvc://CLAIM/PATH` places lie on, each once, in the order of the manifest."""
    named = (
        place.removeprefix(CLAIM_SCHEME).partition("/")[0]
        for place in places
        if place.startswith(CLAIM_SCHEME)
    )
    return tuple(dict.fromkeys(named))


def text_source(source: Source) -> TextSource:
    """One source of plain documents."""
    return TextSource(
        source=source.source, text_field=source.text_field, weight=source.weight, max_tokens=source.max_tokens
    )


def optimizer(asked: Optimizer, rate: float) -> OptimizerConfig:
    """AdamW with a resolved rate."""
    return OptimizerConfig(
        learning_rate=rate,
        weight_decay=asked.weight_decay,
        betas=(asked.betas[0], asked.betas[1]),
        gradient_clip=asked.gradient_clip,
    )


def schedule(asked: Schedule) -> ScheduleConfig:
    """The learning rate over the run."""
    return ScheduleConfig(
        type=asked.type, warmup_fraction=asked.warmup_fraction, minimum_ratio=asked.minimum_ratio
    )


def stop_rule(spec: DomainAdaptationSpec) -> StopRule:
    """The rule by which trainer and operator stop an attempt."""
    gates = spec.gates
    return StopRule(
        max_increase_fraction=gates.max_general_perplexity_increase,
        patience=gates.patience,
        hard_stop_factor=gates.hard_stop_factor,
        enforce_limit=gates.on_breach != "Warn",
    )


def distribution(batch: Batch) -> DistributionConfig:
    """How the ranks share the model."""
    return DistributionConfig.model_validate(
        {
            "zero_stage": batch.zero_stage,
            "offload": batch.offload,
            "gradient_checkpointing": batch.gradient_checkpointing,
            "precision": batch.precision,
        }
    )


def regularization(spec: DomainAdaptationSpec) -> RegularizationConfig | None:
    """The penalty against forgetting, where one is asked for."""
    asked = spec.pretraining.regularization
    if asked is None:
        return None
    if asked.ewc is not None:
        return RegularizationConfig(
            kind="ewc",
            strength=asked.ewc.strength,
            samples=asked.ewc.samples,
            parameters=asked.ewc.parameters,
        )
    if asked.l2sp is not None:
        return RegularizationConfig(kind="l2sp", strength=asked.l2sp.strength)
    assert asked.kl_to_base is not None
    return RegularizationConfig(kind="klToBase", strength=asked.kl_to_base.strength)


def gang_resources(gang: RankLayout, spec: DomainAdaptationSpec, own: CpuResources | None) -> RunResources:
    """What a gang asks for; CPU and memory of pretraining unless the stage has its own."""
    return RunResources(
        nodes=gang.nodes,
        processes_per_node=gang.processes_per_node,
        accelerators_per_node=gang.accelerators_per_node,
        cpu=(own.cpu if own else None) or spec.resources.cpu,
        memory=(own.memory if own else None) or spec.resources.memory,
    )


def measuring(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, stage: str) -> RunResources:
    """One process, or as many as `stageResources` says."""
    own = getattr(spec.stage_resources, stage)
    processes = (own.gpus if own else None) or 1
    gang = RankLayout(1, processes, processes if profile.accelerator.kind == "gpu" else 0)
    return gang_resources(gang, spec, own)


def one_process(spec: DomainAdaptationSpec, own: CpuResources | None) -> RunResources:
    """No gang and no accelerator."""
    return gang_resources(RankLayout(1, 1, 0), spec, own)
