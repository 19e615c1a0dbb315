"""The global batch of a training stage: shared by the ranks, accumulated in micro-batches that fit into memory.

Raises `RefusedError` for what the numbers rule out; the message says which field, which value, and what would do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal, cast

from dapt_contract.stages.common import LoraConfig, Offload, Precision, ZeroStage
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.quantity import parse_quantity
from dapt_operator.api.v1alpha1.conditions import INVALID_SPEC, NOT_ENOUGH_MEMORY
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.number_format import plural
from dapt_operator.plan.sizing.model_fit.memory import (
    FREE_FRACTION,
    GIB,
    AcceleratorKind,
    MemoryParts,
    usable_bytes,
)
from dapt_operator.plan.sizing.model_fit.parallelism import (
    SharingRequest,
    choose_sharing,
    node_bytes,
    sharing_of_started,
    smallest_sharing,
    what_would_fit,
)
from dapt_operator.plan.sizing.resolve import RankLayout, RefusedError, training_precision

MICRO_BATCH_TOKENS: Final[dict[AcceleratorKind, int]] = {"gpu": 32_768, "cpu": 1024}
"""More tokens in one forward pass gain nothing: a GPU is busy, a CPU's caches are full."""

TrainingBlock = Literal["pretraining", "finetuning", "preference"]
"""Blocks of the spec that train."""


MemoryRule = Literal["withMargin", "asEarlier", "any"]
"""What a stage must fit into: the accelerator with `FREE_FRACTION` of it free; the whole of it, as earlier versions
planned, where a run has started; or nothing, where a run lives or has ended well. So what is paid for does not end by a
later version's estimate."""


@dataclass(frozen=True)
class BatchRequest:
    """What one training stage asks for."""

    block: TrainingBlock
    """Named in messages."""
    layout: RankLayout
    model: ModelFacts
    """With the rows of a grown tokenizer."""
    lora: LoraConfig | None
    global_batch_size: int
    micro_batch_size: int | None
    """None: the largest that fits."""
    sequence_length_tokens: int
    sequences_per_unit: int = 1
    """Sequences that one unit of the batch holds: two for a pair of preference tuning."""
    memory_rule: MemoryRule = "withMargin"


@dataclass(frozen=True)
class Batch:
    """How the global batch is divided, how the ranks share the model, and the memory that both take."""

    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    zero_stage: ZeroStage
    gradient_checkpointing: bool
    precision: Precision
    memory: MemoryParts
    offload: Offload = "none"
    host_bytes: float = 0.0
    """Bytes that a rank keeps in its node's memory instead of on its accelerator."""
    process_bytes: float = 0.0
    """Bytes of its node's memory that a rank takes for itself and for loading."""
    sequence_parallel: int = 1
    """Ranks that share a sequence."""
    nodes: int = 1
    """Nodes of the layout that it was made for."""


def fit_batch(request: BatchRequest, spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> Batch:
    """Return the largest micro-batch that fits by the estimate, with the way to share the model that it fits in.

    Raises:
        RefusedError: nothing fits, with the parts of the smallest way and what would fit; or the batch cannot be
            divided.
    """
    _check_divisible(request.block, request.global_batch_size, request.layout, request.micro_batch_size)
    if request.block == "pretraining":
        _check_shared_sequences(request, spec)
    per_rank = request.global_batch_size // request.layout.world_size
    sharing_request = _sharing_request(request, spec, profile)
    sharing = choose_sharing(sharing_request)
    if sharing is None and request.memory_rule != "withMargin":
        sharing = sharing_of_started(
            sharing_request, profile.accelerator.memory_gib * GIB, must_fit=request.memory_rule == "asEarlier"
        )
    if sharing is None:
        raise _too_large(request.block, profile, sharing_request)
    return Batch(
        global_batch_size=request.global_batch_size,
        micro_batch_size=sharing.micro_batch_size,
        accumulation=per_rank * sharing.sequence_parallel // sharing.micro_batch_size,
        zero_stage=sharing.zero_stage,
        gradient_checkpointing=sharing.gradient_checkpointing,
        precision=sharing_request.precision,
        memory=sharing.memory,
        offload=sharing.offload,
        host_bytes=sharing.host_bytes,
        process_bytes=sharing.process_bytes,
        sequence_parallel=sharing.sequence_parallel,
        nodes=request.layout.nodes,
    )


def halved(batch: Batch, halvings: int) -> Batch | None:
    """Return the same global batch with the micro-batch at most half, `halvings` times; None when it is 1 already."""
    if not halvings:
        return batch
    per_rank = batch.micro_batch_size * batch.accumulation
    size = batch.micro_batch_size
    for _ in range(halvings):
        if size == 1:
            return None
        # A divisor of the rank's share, so that the global batch stays what it was.
        size = max(divisor for divisor in range(1, size // 2 + 1) if per_rank % divisor == 0)
    return replace(batch, micro_batch_size=size, accumulation=per_rank // size)


def with_smallest_micro_batch(batch: Batch) -> Batch:
    """Return the same global batch with one sequence a rank at a time."""
    return replace(batch, micro_batch_size=1, accumulation=batch.micro_batch_size * batch.accumulation)


def check_pretraining_batch(spec: DomainAdaptationSpec, layout: RankLayout) -> None:
    """Check that the ranks can share pretraining's batch, as far as that is known without a model.

    Raises:
        RefusedError: they cannot.
    """
    pretraining = spec.pretraining
    if pretraining.global_batch_size is not None:
        _check_divisible("pretraining", pretraining.global_batch_size, layout, pretraining.micro_batch_size)


def check_finetuning_batch(spec: DomainAdaptationSpec, layouts: tuple[RankLayout, ...]) -> None:
    """Check fine-tuning's batch before pretraining starts, so that a mistake in it does not cost the pretraining.

    Raises:
        RefusedError: the ranks of none of the layouts can share it.
    """
    tuning = spec.finetuning
    if tuning is None or tuning.global_batch_size is None:
        return
    micro = tuning.micro_batch_size or 1
    if all(tuning.global_batch_size % (layout.world_size * micro) for layout in layouts):
        # In the words of the layout with the fewest ranks, which asks for least.
        _check_divisible("finetuning", tuning.global_batch_size, layouts[-1], tuning.micro_batch_size)


def _check_divisible(
    block: TrainingBlock, global_batch_size: int, layout: RankLayout, micro_batch_size: int | None
) -> None:
    """Refuse a batch that cannot be shared equally, and names the nearest that can."""
    micro = micro_batch_size or 1
    parts = layout.world_size * micro
    if global_batch_size % parts == 0:
        return
    shared_by = (
        f"{plural(layout.nodes, 'node')} x {plural(layout.processes_per_node, 'process', 'processes')}"
    )
    if micro > 1:
        shared_by += f" x micro-batch {micro}"
    below = global_batch_size // parts * parts
    nearest = f"{below} or {below + parts}" if below else str(parts)
    raise RefusedError(
        INVALID_SPEC,
        f"spec.{block}.globalBatchSize is {global_batch_size}, which cannot be divided by {parts} ({shared_by}):"
        f" write {nearest}",
    )


def _check_shared_sequences(request: BatchRequest, spec: DomainAdaptationSpec) -> None:
    """Refuse ranks of a sequence that do not divide what they share."""
    ranks = spec.pretraining.distribution.sequence_parallel or 1
    shared = {
        f"the {request.layout.world_size} ranks": request.layout.world_size,
        f"the model's {request.model.key_value_heads} key-value heads": request.model.key_value_heads,
        f"sequences of {request.sequence_length_tokens} tokens": request.sequence_length_tokens,
    }
    undivided = [text for text, number in shared.items() if number % ranks]
    if undivided:
        raise RefusedError(
            INVALID_SPEC,
            f"spec.pretraining.distribution.sequenceParallel is {ranks}, which does not divide"
            f" {' and '.join(undivided)}: write a divisor of all of them, or leave it out",
        )


def _sharing_request(
    request: BatchRequest, spec: DomainAdaptationSpec, profile: AdaptationProfileSpec
) -> SharingRequest:
    distribution, accelerator = spec.pretraining.distribution, profile.accelerator
    is_pretraining = request.block == "pretraining"
    penalty = spec.pretraining.regularization if is_pretraining else None
    return SharingRequest(
        model=request.model,
        lora=request.lora,
        kind=accelerator.kind,
        world_size=request.layout.world_size,
        ranks_per_node=request.layout.processes_per_node,
        memory_limit_bytes=usable_bytes(accelerator.memory_gib),
        host_memory_limit_bytes=_node_memory_bytes(spec, request.block),
        precision=training_precision(spec, profile),
        sequence_length_tokens=request.sequence_length_tokens,
        micro_batch_sizes=_micro_batch_sizes(request, accelerator.kind),
        rank_batch_size=request.global_batch_size // request.layout.world_size,
        sequences_per_unit=request.sequences_per_unit,
        zero_stage=cast("ZeroStage | None", distribution.zero_stage),  # the API admits 0 to 3
        offload=distribution.offload,
        gradient_checkpointing=distribution.gradient_checkpointing,
        # The trainer finds no slice of a penalty in weights that are spread, nor in an offloaded optimizer.
        may_spread=penalty is None,
        regularization=penalty,
        sequence_parallel=distribution.sequence_parallel if is_pretraining else None,
        may_split_sequences=is_pretraining and penalty is None and accelerator.kind == "gpu",
        # A penalty on predictions and preference tuning need the logits themselves.
        may_chunk_loss=request.block != "preference" and (penalty is None or penalty.kl_to_base is None),
    )


def _micro_batch_sizes(request: BatchRequest, kind: AcceleratorKind) -> tuple[int, ...]:
    """Return the sizes to choose from, largest first: divisors of a rank's share, so that accumulation is exact."""
    per_rank = request.global_batch_size // request.layout.world_size
    divisors = [size for size in range(per_rank, 0, -1) if per_rank % size == 0]
    if request.micro_batch_size is not None:
        return tuple(size for size in divisors if size <= request.micro_batch_size)[:1]
    largest = max(1, MICRO_BATCH_TOKENS[kind] // request.sequence_length_tokens)
    return tuple(size for size in divisors if size <= largest)


def _node_memory_bytes(spec: DomainAdaptationSpec, block: TrainingBlock) -> float | None:
    """Return the memory that a pod of the stage may use; None where the profile's pod template decides."""
    resources = {
        "pretraining": None,
        "finetuning": spec.stage_resources.finetune,
        "preference": spec.stage_resources.align,
    }[block]
    memory = (resources.memory if resources else None) or spec.resources.memory
    return None if memory is None else parse_quantity(str(memory))


def _too_large(block: TrainingBlock, profile: AdaptationProfileSpec, request: SharingRequest) -> RefusedError:
    smallest = smallest_sharing(request)
    proposals = what_would_fit(request)
    host = ""
    if smallest.memory.total <= request.memory_limit_bytes and request.host_memory_limit_bytes is not None:
        host = (
            f", and {node_bytes(request, smallest) / GIB:.1f} GiB of a node's memory, of which"
            f" resources.memory gives {request.host_memory_limit_bytes / GIB:.1f}"
        )
    if not proposals:
        # No change of the spec is enough, so it is the accelerator that is too small.
        needed_gib = math.ceil(smallest.memory.total / GIB / (1.0 - FREE_FRACTION))
        proposals = [f"a profile whose accelerator.memoryGiB is at least {needed_gib}"]
    advice = f"what would fit: {'; '.join(proposals)}"
    offered = f"{profile.accelerator.memory_gib:g}{host}"
    return RefusedError(
        NOT_ENOUGH_MEMORY,
        f"{block} needs {smallest.memory.total / GIB:.1f} GiB a rank by the estimate ({smallest.memory.text()}) and the"
        f" profile's accelerator.memoryGiB is {offered}: {FREE_FRACTION:.0%} of it stay free;"
        f" {advice}",
    )
