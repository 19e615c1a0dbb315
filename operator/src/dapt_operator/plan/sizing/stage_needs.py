"""What each stage takes: ranks, memory of a GPU and of a node, space on the work volume, and what its ranks send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dapt_contract.inputs.model_size import WEIGHT_BYTES, checkpoint_size, trainable_parameters
from dapt_contract.stages.common import LoraConfig, ModelSpread
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.number_format import plural
from dapt_operator.plan.sizing.model_fit.batch import Batch
from dapt_operator.plan.sizing.model_fit.measuring import MeasuringPlan, MeasuringStage
from dapt_operator.plan.sizing.model_fit.memory import process_host_bytes, usable_bytes
from dapt_operator.plan.sizing.resolve import (
    RankLayout,
    lora_config,
    pretrain_layout,
    pretraining_lora,
    tokenizer_extension,
    training_precision,
)
from dapt_operator.plan.sizing.tuning_estimate import TuningEstimate

WRITTEN_BLENDS: Final = 4
"""Blends that lie on the work volume at a time: the one that is read, and the best three so far."""
TOKEN_BYTES: Final = 4
"""Bytes of one packed token."""


@dataclass(frozen=True)
class StageNeed:
    """What one stage takes by the estimate."""

    stage: str
    """Kind of the stage."""
    layout: RankLayout
    how: str
    """How its ranks share the model and its work."""
    memory_bytes: float
    """Of one accelerator, or of one process on a CPU; 0 for a stage without a model."""
    limit_bytes: float
    """What a plan may fill of it."""
    host_bytes: float
    """Of one node; on a CPU its processes' memory."""
    disk_bytes: float
    """That it writes to the work volume."""
    traffic_bytes: float = 0.0
    """That one rank sends to others in an optimizer step, over the links of a node and over the network."""


@dataclass(frozen=True)
class TrainedStages:
    """What the training stages are sized by."""

    pretraining: Batch | None
    sequence_length_tokens: int
    checkpoint_bytes: float | None
    """Of all checkpoints of one attempt."""
    tuning: tuple[TuningEstimate, ...]
    corpus_tokens: int | None
    """Of both sides; None: not known."""


def stage_needs(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    model: ModelFacts,
    measuring: Mapping[MeasuringStage, MeasuringPlan],
    trained: TrainedStages,
) -> tuple[StageNeed, ...]:
    """Return what each stage takes, in the order of the chain; stages that are refused are left out."""
    return tuple(_Needs(spec, profile, model, measuring, trained).rows())


def traffic_bytes(
    model: ModelFacts, lora: LoraConfig | None, batch: Batch, world_size: int, length: int
) -> float:
    """Return what a rank sends in an optimizer step, in a large ring.

    With G the bytes of the gradients in fp32 and W those of the weights, of LoRA the adapters' (Rajbhandari et al.
    2020, section 7): stage 1 reduces to all once, 2 G, and gathers the new weights; stage 2 reduces to each rank's part
    for every micro-batch, G, and gathers; stage 3 also gathers all weights of the model twice for every micro-batch.
    Ranks that share sequences exchange queries, keys, values and attention's output in each layer (Jacobs et al. 2023),
    forward and backward, and once more where activations are recomputed.
    """
    if world_size == 1:
        return 0.0
    element, trained = WEIGHT_BYTES[batch.precision], trainable_parameters(model, lora)
    gradients, new_weights = 4.0 * trained, float(element * trained)
    all_weights = float(element * (model.parameters + (trained if lora is not None else 0)))
    sent = {
        0: 2 * gradients,
        1: 2 * gradients + new_weights,
        2: batch.accumulation * gradients + new_weights,
        3: batch.accumulation * (gradients + 2 * all_weights),
    }[batch.zero_stage]
    if batch.sequence_parallel > 1:
        tokens = batch.micro_batch_size * length / batch.sequence_parallel
        passes = 3 if batch.gradient_checkpointing else 2
        heads = 2 * model.query_width + 2 * model.key_width
        to_others = 1.0 - 1.0 / batch.sequence_parallel
        sent += batch.accumulation * passes * model.layers * tokens * heads * element * to_others
    return sent


@dataclass(frozen=True)
class _Needs:
    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    model: ModelFacts
    measuring: Mapping[MeasuringStage, MeasuringPlan]
    trained: TrainedStages

    def rows(self) -> Iterator[StageNeed]:
        yield self._prepare()
        yield from self._measuring("baseline")
        if self.trained.pretraining is not None:
            layout = pretrain_layout(self.spec, self.profile)
            disk = self.trained.checkpoint_bytes or 0.0
            length = self.trained.sequence_length_tokens
            yield self._training(
                "pretrain", layout, self.trained.pretraining, pretraining_lora(self.spec), length, disk
            )
        yield from self._measuring("blend", WRITTEN_BLENDS * self._model_bytes)
        yield from self._measuring("evaluate")
        for tuning in self.trained.tuning:
            if tuning.batch is not None:
                yield self._tuning(tuning, tuning.batch)
        yield from self._measuring("verify")
        yield self._on_cpu("publish", "copies files, merges adapters", self._model_bytes, 0.0)

    @property
    def _model_bytes(self) -> float:
        """Bytes of a whole model as it is written down, in the base model's own number format."""
        return float(self.model.weights_bytes or 2 * self.model.parameters)

    def _prepare(self) -> StageNeed:
        copies = 1 if tokenizer_extension(self.spec) is None else 2
        disk = copies * self._model_bytes + TOKEN_BYTES * (self.trained.corpus_tokens or 0)
        own = self.spec.stage_resources.prepare
        nodes = (own.nodes if own else None) or 1
        return self._on_cpu("prepare", "downloads, cleans and packs", 0.0, disk, nodes)

    def _on_cpu(
        self, stage: str, how: str, loaded_bytes: float, disk_bytes: float, nodes: int = 1
    ) -> StageNeed:
        # Of one process without an accelerator, which holds at most one file of weights at a time.
        host = process_host_bytes("gpu", loaded_bytes)
        return StageNeed(stage, RankLayout(nodes, 1, 0), how, 0.0, 0.0, host, disk_bytes)

    def _measuring(self, stage: MeasuringStage, disk_bytes: float = 0.0) -> Iterator[StageNeed]:
        plan = self.measuring.get(stage)
        if plan is None:
            return
        host = plan.host_bytes or plan.layout.processes_per_node * plan.memory.total
        how = spread_text(plan.spread, plan.layout.world_size)
        yield StageNeed(stage, plan.layout, how, plan.memory.total, plan.limit_bytes, host, disk_bytes)

    def _training(
        self,
        stage: str,
        layout: RankLayout,
        batch: Batch,
        lora: LoraConfig | None,
        length: int,
        disk_bytes: float,
    ) -> StageNeed:
        of_rank = batch.host_bytes + batch.process_bytes
        if self.profile.accelerator.kind == "cpu":
            of_rank = batch.memory.total
        return StageNeed(
            stage,
            layout,
            sharing_text(batch),
            batch.memory.total,
            usable_bytes(self.profile.accelerator.memory_gib),
            layout.processes_per_node * of_rank,
            disk_bytes,
            traffic_bytes(self.model, lora, batch, layout.world_size, length),
        )

    def _tuning(self, tuning: TuningEstimate, batch: Batch) -> StageNeed:
        block = self.spec.finetuning if tuning.stage == "finetune" else self.spec.preference
        lora = lora_config(block.method) if block is not None else None
        size = checkpoint_size(self.model, lora, training_precision(self.spec, self.profile))
        # A checkpoint with its optimizer's state, until the result is written; adapters are merged for later stages.
        merged = self._model_bytes if lora is not None else 0.0
        disk = size.total_bytes(1) + size.weights_bytes + merged
        return self._training(tuning.stage, tuning.layout, batch, lora, tuning.sequence_length_tokens, disk)


def sharing_text(batch: Batch) -> str:
    """Return `micro-batch 1 x 8 accumulated, ZeRO 2, bf16, activations recomputed`."""
    recomputed = ", activations recomputed" if batch.gradient_checkpointing else ""
    offload = f"offload {batch.offload}, " if batch.offload != "none" else ""
    split = f", {batch.sequence_parallel} ranks a sequence" if batch.sequence_parallel > 1 else ""
    return (
        f"micro-batch {batch.micro_batch_size} x {batch.accumulation} accumulated,"
        f" ZeRO {batch.zero_stage}, {offload}{batch.precision}{recomputed}{split}"
    )


def spread_text(spread: ModelSpread, world_size: int) -> str:
    """Return `2 whole copies`, `1 copy over 8 ranks, ZeRO 3` or `2 copies over 4 ranks, tensor parallel`."""
    ranks = spread.ranks_per_model
    if ranks == 1:
        return plural(world_size, "whole copy", "whole copies")
    if spread.method == "zero3":
        return f"1 copy over {world_size} ranks, ZeRO 3"
    return f"{plural(world_size // ranks, 'copy', 'copies')} over {ranks} ranks, tensor parallel"
