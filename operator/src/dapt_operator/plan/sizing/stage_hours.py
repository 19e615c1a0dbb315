"""Hours of accelerators by stage, each with its formula."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dapt_contract.inputs.held_out import max_held_out_tokens
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.number_format import count, plural
from dapt_operator.plan.sizing.compute import ComputeRate, measuring_flops, training_flops
from dapt_operator.plan.sizing.model_fit.batch import Batch
from dapt_operator.plan.sizing.resolve import Steps
from dapt_operator.plan.sizing.tuning_estimate import TuningEstimate

ASSUMED_ITEMS: Final = 1000
"""Items of a task of which the estimate does not know how many it has."""
ASSUMED_EXAMPLE_TOKENS: Final = 100
"""Tokens of one few-shot example or item; four choices score four of them."""
CHOICES: Final = 4
MEASURED_MODELS: Final = 3
"""Base model, best candidate and finished model; checkpoints are measured by perplexity alone."""


@dataclass(frozen=True)
class StageHours:
    """Accelerator-hours of one kind of stage; of a CPU profile, hours of one process."""

    kind: str
    hours: float
    formula: str
    ranks: int = 1
    """Accelerators or processes that share the hours."""


def stage_hours(
    spec: DomainAdaptationSpec,
    model: ModelFacts,
    rate: ComputeRate,
    *,
    steps: Steps,
    pretraining: tuple[Batch | None, int],
    tuning: tuple[TuningEstimate, ...],
    items: Mapping[str, int],
) -> tuple[StageHours, ...]:
    """Return the stages that train and measure, pretraining first; tuning stages without a known size are left out.

    Args:
        spec: the desired spec.
        model: that is trained.
        rate: of one accelerator.
        steps: of pretraining.
        pretraining: its batch, and its ranks.
        tuning: the estimates of the tuning stages.
        items: of tasks, by name; others are assumed to have `ASSUMED_ITEMS`.
    """
    hours = _Hours(model, rate)
    batch, ranks = pretraining
    return (
        hours.training(
            "pretrain", steps.total_tokens, batch, ranks, spec.pretraining.method.lora is not None
        ),
        *_tuning_hours(hours, tuning),
        _measuring(spec, hours, steps, items),
    )


def _tuning_hours(hours: _Hours, tuning: tuple[TuningEstimate, ...]) -> Iterator[StageHours]:
    for stage in tuning:
        if stage.total_tokens is None:
            continue
        yield hours.training(
            stage.stage,
            stage.total_tokens,
            stage.batch,
            stage.ranks,
            stage.method == "lora",
            reference_tokens=stage.reference_tokens,
        )


def _measuring(
    spec: DomainAdaptationSpec, hours: _Hours, steps: Steps, known_items: Mapping[str, int]
) -> StageHours:
    evaluation, held_out = spec.evaluation, spec.corpus.held_out
    num_checkpoints = len(steps.checkpoint_steps)
    most = held_out.max_tokens or max_held_out_tokens(steps.total_tokens, num_checkpoints)
    held_out_tokens = 2.0 * min(most, steps.total_tokens * held_out.fraction)
    tasks = (*evaluation.domain.tasks, *evaluation.general.tasks)
    scored_tokens = 0
    for task in tasks:
        shots = evaluation.few_shot if task.few_shot is None else task.few_shot
        items = known_items.get(task.name, ASSUMED_ITEMS)
        items = min(items, evaluation.limit or items)
        scored_tokens += items * CHOICES * ASSUMED_EXAMPLE_TOKENS * (shots + 1)
    tokens = held_out_tokens * (MEASURED_MODELS + num_checkpoints) + scored_tokens * MEASURED_MODELS
    what = (
        f"held-out text of {MEASURED_MODELS} models and {plural(num_checkpoints, 'checkpoint')},"
        f" items of {plural(len(tasks), 'task')}"
    )
    return hours.measuring(tokens, what)


@dataclass(frozen=True)
class _Hours:
    """Turns tokens into hours."""

    model: ModelFacts
    rate: ComputeRate

    def training(
        self,
        kind: str,
        tokens: float,
        batch: Batch | None,
        ranks: int,
        is_lora: bool,
        reference_tokens: float = 0,
    ) -> StageHours:
        recompute = batch.gradient_checkpointing if batch is not None else False
        flops = training_flops(self.model, tokens, recompute=recompute)
        flops += measuring_flops(self.model, reference_tokens)
        hours = flops / self.rate.training_flops_per_second / 3600.0
        parameters = self._parameters()
        recomputed = " x 4/3 (recomputed activations)" if recompute else ""
        reference = (
            f" + 2 x {parameters} parameters x {count(reference_tokens)} tokens (the reference)"
            if reference_tokens
            else ""
        )
        lora = "; LoRA saves memory, at most a third of the compute" if is_lora else ""
        return StageHours(
            kind,
            hours,
            f"{kind}: 6 x {parameters} parameters x {count(tokens)} tokens{recomputed}{reference}"
            f" = {flops:.3g} FLOP; / ({self.rate.training_text}) = {hours:.3g} accelerator-hours{lora}",
            ranks,
        )

    def _parameters(self) -> str:
        passed = count(self.model.parameters_of_a_token)
        return passed if self.model.active_parameters is None else f"{passed} active"

    def measuring(self, tokens: float, what: str) -> StageHours:
        flops = measuring_flops(self.model, tokens)
        hours = flops / self.rate.measuring_flops_per_second / 3600.0
        return StageHours(
            "measure",
            hours,
            f"measure: 2 x {self._parameters()} parameters x {count(tokens)} tokens ({what})"
            f" = {flops:.3g} FLOP; / ({self.rate.measuring_text}) = {hours:.3g} accelerator-hours",
        )
