"""Parts that the configurations of several stages share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from dapt_contract.measure import Side
from dapt_contract.stages.common import (
    DistributionConfig,
    EvaluationConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TaskConfig,
    probe_name,
)
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_training import Optimizer, Schedule
from dapt_operator.plan.sizing.model_fit.batch import Batch
from dapt_operator.remembered import remembered

SIDES: Final[tuple[Side, ...]] = ("domain", "general")
_CACHED_SPECS: Final = 64


def evaluation_config(spec: DomainAdaptationSpec, prepared: PrepareFacts) -> EvaluationConfig:
    """Return what is measured, the same for every model of an adaptation; prepare has put custom data on the volume."""
    return EvaluationConfig(
        tasks=tasks(spec),
        probes=probes(spec),
        limit=spec.evaluation.limit,
        context_length_tokens=prepared.sequence_length_tokens,
        seed=spec.seed,
    )


@remembered(_CACHED_SPECS)
def tasks(spec: DomainAdaptationSpec) -> tuple[TaskConfig, ...]:
    """Return the tasks of both sides, domain first."""
    evaluation = spec.evaluation
    by_side = {"domain": evaluation.domain.tasks, "general": evaluation.general.tasks}
    return tuple(
        TaskConfig(
            name=task.name,
            side=side,
            source=task.source,
            few_shot=task.few_shot if task.few_shot is not None else evaluation.few_shot,
        )
        for side in SIDES
        for task in by_side[side]
    )


@remembered(_CACHED_SPECS)
def probes(spec: DomainAdaptationSpec) -> tuple[ProbeConfig, ...]:
    """Return the probe sets of both sides, each named by its side and its index."""
    by_side = {"domain": spec.evaluation.probes.domain, "general": spec.evaluation.probes.general}
    return tuple(
        ProbeConfig(name=probe_name(side, index), side=side, source=probe.source)
        for side in SIDES
        for index, probe in enumerate(by_side[side])
    )


def item_sources(tasks: Iterable[TaskConfig], probes: Iterable[ProbeConfig]) -> tuple[str, ...]:
    """Return the sources of custom evaluation items."""
    return (*(task.source for task in tasks if task.source is not None), *(probe.source for probe in probes))


def content(sources: Iterable[str], contents: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return (source, digest of its files) of those sources whose files are on the machine that plans."""
    return tuple((source, contents[source]) for source in dict.fromkeys(sources) if source in contents)


def optimizer(settings: Optimizer, learning_rate: float) -> OptimizerConfig:
    """Return AdamW's settings with a resolved rate."""
    return OptimizerConfig(
        learning_rate=learning_rate,
        weight_decay=settings.weight_decay,
        betas=(settings.betas[0], settings.betas[1]),
        gradient_clip=settings.gradient_clip,
    )


def schedule(settings: Schedule) -> ScheduleConfig:
    """Return the learning rate's course over the run."""
    return ScheduleConfig(
        type=settings.type, warmup_fraction=settings.warmup_fraction, minimum_ratio=settings.minimum_ratio
    )


def distribution(batch: Batch) -> DistributionConfig:
    """Return how the ranks share the model, and each sequence."""
    return DistributionConfig(
        zero_stage=batch.zero_stage,
        offload=batch.offload,
        gradient_checkpointing=batch.gradient_checkpointing,
        precision=batch.precision,
        sequence_parallel=batch.sequence_parallel,
    )
