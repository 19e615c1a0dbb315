"""Chooses how the ranks share the model: the way with the least communication whose memory fits, or what would fit.

Stages 0 and 1 exchange gradients once a step. Stage 2 does so for each micro-batch, and stage 3 exchanges weights too
(`python -m bench traffic` counts the bytes); offloading moves gradients and weights over the host's bus, twice with
stage 3's weights. So the order is: stage 2 where one micro-batch makes the step, since it then sends least; stage 1, 2,
3; no offload before any; recomputed activations before the next stage; and within one way the largest micro-batch. On
one node stage 2 comes before recomputed activations, though: they cost a third more compute, at 8 B parameters and 400
TFLOP/s 0.16 s for 4,096 tokens, in which NVLink reduces the gradients (32 GB at some 350 GB/s) and a network of 50 GB/s
for each GPU does not. Ranks share sequences where a whole one does not fit with any stage, before anything is
offloaded: attention then exchanges its heads in every layer, on the fast links of a node.

In bf16 stage 0 is never used, not even for one rank: DeepSpeed's optimizer for it sums micro-batches in bf16, and
begins with an update of zero gradients, which weakens Adam's first steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from dapt_contract.stages.common import LoraConfig, Offload, Precision, ZeroStage
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.spec_training import Regularization
from dapt_operator.plan.sizing.model_fit.memory import (
    GIB,
    AcceleratorKind,
    MemoryParts,
    TrainingShape,
    can_chunk_loss,
    host_bytes,
    process_host_bytes,
    training_memory,
)

LARGEST_WORLD: Final = 1024
SHORTEST_SEQUENCE_TOKENS: Final = 512

Mode = tuple[ZeroStage, Offload]


@dataclass(frozen=True)
class SharingRequest:
    """What the spec asks for and what the profile offers; None where the spec leaves the choice to the estimate."""

    model: ModelFacts
    lora: LoraConfig | None
    kind: AcceleratorKind
    world_size: int
    ranks_per_node: int
    memory_limit_bytes: float
    """Memory of one accelerator."""
    host_memory_limit_bytes: float | None
    """Memory of one node's pod; None: unknown, and then nothing is offloaded unless the spec asks for it."""
    precision: Precision
    sequence_length_tokens: int
    micro_batch_sizes: tuple[int, ...]
    """Sizes to choose from, largest first."""
    rank_batch_size: int | None = None
    """Units of the batch that a rank gets for one optimizer step; None: more than a micro-batch."""
    sequences_per_unit: int = 1
    """Sequences that one unit of the batch holds."""
    zero_stage: ZeroStage | None = None
    offload: Offload | None = None
    gradient_checkpointing: bool | None = None
    may_spread: bool = True
    """Whether stage 3 and offloading may be chosen."""
    regularization: Regularization | None = None
    sequence_parallel: int | None = None
    """Ranks that share a sequence; None: chosen."""
    may_split_sequences: bool = False
    """Whether ranks may be chosen to share a sequence."""
    may_chunk_loss: bool = False
    """Whether the loss needs no logits of a whole micro-batch, where the model's architecture allows it."""


@dataclass(frozen=True)
class Sharing:
    """One way to share the model, with what a rank takes of its accelerator and of its node's memory."""

    zero_stage: ZeroStage
    offload: Offload
    gradient_checkpointing: bool
    micro_batch_size: int
    memory: MemoryParts
    host_bytes: float
    """What it keeps in the node's memory between uses."""
    process_bytes: float = 0.0
    """What it takes of the node's memory for itself and for loading."""
    sequence_parallel: int = 1

    def text(self) -> str:
        """Return `zeroStage 3 with offload optimizer: 41.2 GiB a rank and 120.0 GiB of node memory for it`."""
        recomputed = ", recomputed activations" if self.gradient_checkpointing else ""
        split = f", {self.sequence_parallel} ranks a sequence" if self.sequence_parallel > 1 else ""
        host = f" and {self.host_bytes / GIB:.1f} GiB of node memory for it" if self.host_bytes else ""
        offloaded = f" with offload {self.offload}" if self.offload != "none" else ""
        memory = f"{self.memory.total / GIB:.1f} GiB a rank"
        return f"zeroStage {self.zero_stage}{offloaded}{recomputed}{split}: {memory}{host}"


def modes(request: SharingRequest) -> tuple[Mode, ...]:
    """Return (stage, offload) in the order of preference, within what the spec asks for."""
    preferred = _preferred_modes(request)
    stage, offload = request.zero_stage, request.offload
    if stage == 0 and request.precision == "bf16":
        stage = 1
    if stage is not None and offload is not None:
        return ((stage, offload),)
    if stage == 3:
        return tuple(mode for mode in preferred if mode[0] == 3) or ((3, "none"),)
    if stage is not None:
        # The order of preference names stage 2 alone, but the optimizer of stage 1 can be offloaded as well.
        may_offload = any(mode[1] == "optimizer" for mode in preferred) and stage in (1, 2)
        return ((stage, "none"), (stage, "optimizer")) if may_offload else ((stage, "none"),)
    if offload is not None:
        smallest_stage: dict[Offload, ZeroStage] = {
            "none": preferred[0][0],
            "optimizer": 2,
            "all": 3,
        }
        return tuple(mode for mode in preferred if mode[1] == offload) or (
            (smallest_stage[offload], offload),
        )
    return preferred


def _preferred_modes(request: SharingRequest) -> tuple[Mode, ...]:
    """Return the modes that the estimate may choose from, as if the spec asked for none."""
    preferred: list[Mode] = [(stage, "none") for stage in _stages_with_whole_weights(request)]
    if request.may_spread:
        if request.world_size > 1:
            preferred.append((3, "none"))
        if request.kind == "gpu" and (
            request.host_memory_limit_bytes is not None or request.offload is not None
        ):
            preferred += [(2, "optimizer"), (3, "optimizer"), (3, "all")]
    if request.lora is not None and request.lora.embeddings:
        # PEFT cannot train single rows of an embedding that stage 3 has spread over the ranks.
        preferred = [mode for mode in preferred if mode[0] < 3]
    return tuple(preferred)


def _stages_with_whole_weights(request: SharingRequest) -> tuple[ZeroStage, ...]:
    if request.world_size == 1:
        return (0,) if request.precision == "fp32" else (1,)
    # The trainer adds a penalty to slices of the gradients, which stage 1 does not have in bf16.
    return (1, 2) if request.regularization is None else (2,)


def sharings(request: SharingRequest) -> Iterator[Sharing]:
    """Yield every way to share the model, in the order of preference."""
    requested = request.gradient_checkpointing
    checkpointing_choices = (False, True) if requested is None else (requested,)
    ways = [
        _Way(zero_stage, offload, gradient_checkpointing, size, ranks)
        for ranks in _ranks_of_a_sequence(request)
        for zero_stage, offload in modes(request)
        for gradient_checkpointing in checkpointing_choices
        for size in request.micro_batch_sizes
    ]
    best = _Way(2, "none", checkpointing_choices[0], request.rank_batch_size or 0, 1)
    is_one_node = request.world_size <= request.ranks_per_node

    def preference(way: _Way) -> tuple[int, bool]:
        if way == best:
            return 0, False
        if way.offload != "none":
            return (4 if way.offload == "optimizer" else 5), False
        if way.sequence_parallel > 1:
            return 3, False
        if way.zero_stage == 3:
            return 2, False
        return 1, way.gradient_checkpointing and is_one_node

    ways.sort(key=preference)  # a stable sort: what it does not tell apart keeps its order
    for way in ways:
        yield _sharing(request, way)


@dataclass(frozen=True)
class _Way:
    """What `Sharing` has besides its memory."""

    zero_stage: ZeroStage
    offload: Offload
    gradient_checkpointing: bool
    micro_batch_size: int
    sequence_parallel: int


def _sharing(request: SharingRequest, way: _Way) -> Sharing:
    shape = TrainingShape(
        model=request.model,
        lora=request.lora,
        kind=request.kind,
        world_size=request.world_size,
        zero_stage=way.zero_stage,
        precision=request.precision,
        micro_batch_size=way.micro_batch_size * request.sequences_per_unit,
        sequence_length_tokens=request.sequence_length_tokens,
        gradient_checkpointing=way.gradient_checkpointing,
        offload=way.offload,
        regularization=request.regularization,
        sequence_parallel=way.sequence_parallel,
        chunked_loss=request.may_chunk_loss and can_chunk_loss(request.model),
    )
    memory = training_memory(shape)
    return Sharing(
        **vars(way),
        memory=memory,
        host_bytes=host_bytes(shape),
        process_bytes=process_host_bytes(request.kind, memory.weights),
    )


def _ranks_of_a_sequence(request: SharingRequest) -> tuple[int, ...]:
    """Return over how many ranks a sequence may be shared: powers of two on one node that divide heads and length."""
    if request.sequence_parallel is not None:
        return (request.sequence_parallel,)
    if not request.may_split_sequences:
        return (1,)
    heads = request.model.key_value_heads or 1
    sizes = [1]
    while 2 * sizes[-1] <= request.ranks_per_node and all(
        number % (2 * sizes[-1]) == 0
        for number in (heads, request.world_size, request.ranks_per_node, request.sequence_length_tokens)
    ):
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def choose_sharing(request: SharingRequest) -> Sharing | None:
    """Return the first way that fits; None when none does."""
    return next((sharing for sharing in sharings(request) if _fits(request, sharing)), None)


def sharing_of_started(
    request: SharingRequest, accelerator_bytes: float, *, must_fit: bool
) -> Sharing | None:
    """Return the way for a stage of which a run has started already, where none fits by today's rules.

    The first that fits as earlier versions planned: they left nothing free of an accelerator, and did not count what a
    process takes of its node. Where it need not fit, since a run lives or has ended well, else the smallest one.
    """
    limit = math.inf if request.host_memory_limit_bytes is None else request.host_memory_limit_bytes
    fitting = (
        sharing
        for sharing in sharings(request)
        if sharing.memory.total <= accelerator_bytes and sharing.host_bytes * request.ranks_per_node <= limit
    )
    found = next(fitting, None)
    return found if found is not None or must_fit else smallest_sharing(request)


def smallest_sharing(request: SharingRequest) -> Sharing:
    """Return the way that takes least of an accelerator, for the message of a refusal."""
    return min(sharings(request), key=lambda sharing: sharing.memory.total)


def what_would_fit(request: SharingRequest) -> list[str]:
    """Return changes, one at a time, with which a way fits; nearest to what the spec asks for first."""
    proposals: list[str] = []

    def propose(change: str, changed: SharingRequest) -> bool:
        sharing = choose_sharing(changed)
        if sharing is not None:
            proposals.append(f"{change} ({sharing.text()})")
        return sharing is not None

    # First without what the spec fixes: the estimate may find a way where the chosen one does not fit.
    free = replace(request, zero_stage=None, offload=None, gradient_checkpointing=None)
    if free != request and propose("pretraining.distribution left to the estimate", free):
        return proposals
    if request.micro_batch_sizes != (1,):
        propose("micro-batches of 1", replace(free, micro_batch_sizes=(1,)))
    # From here on the micro-batch is as small as it can be, so that each proposal needs its own change alone.
    free = replace(free, micro_batch_sizes=(1,))
    if request.lora is None:
        propose("lora", replace(free, lora=LoraConfig()))
    if request.regularization is not None:
        # A penalty needs whole weights on each rank.
        propose("no pretraining.regularization", replace(free, regularization=None, may_spread=True))
    proposals += _with_more_host_memory(free)
    length = request.sequence_length_tokens // 2
    while length >= SHORTEST_SEQUENCE_TOKENS:
        if propose(f"sequences of {length} tokens", replace(free, sequence_length_tokens=length)):
            break
        length //= 2
    ranks = request.world_size * 2
    while ranks <= LARGEST_WORLD:
        if propose(f"{ranks} ranks", replace(free, world_size=ranks)):
            break
        ranks *= 2
    # Where no change alone is enough, the first two that are.
    return proposals or _two_changes(free)


def _two_changes(request: SharingRequest) -> list[str]:
    """Return the longest sequences that fit together with LoRA or with more ranks, whichever comes first."""
    length = request.sequence_length_tokens
    while length >= SHORTEST_SEQUENCE_TOKENS:
        shorter = replace(request, sequence_length_tokens=length)
        of_length = "" if length == request.sequence_length_tokens else f" with sequences of {length} tokens"
        changes = [("lora", replace(shorter, lora=LoraConfig()))] if request.lora is None else []
        worlds = (request.world_size * 2**power for power in range(1, LARGEST_WORLD.bit_length()))
        changes += [
            (f"{ranks} ranks", replace(shorter, world_size=ranks))
            for ranks in worlds
            if ranks <= LARGEST_WORLD
        ]
        for change, changed in changes:
            if (sharing := choose_sharing(changed)) is not None:
                return [f"{change}{of_length} ({sharing.text()})"]
        length //= 2
    return []


def _with_more_host_memory(request: SharingRequest) -> list[str]:
    """Return how much memory a node needs for the first way that fits the accelerator by offloading; else nothing."""
    if request.host_memory_limit_bytes is None and request.kind != "gpu":
        return []
    unlimited = replace(request, host_memory_limit_bytes=math.inf)
    sharing = next((sharing for sharing in sharings(unlimited) if _fits_accelerator(request, sharing)), None)
    if sharing is None or not sharing.host_bytes:
        return []
    node_gib = math.ceil(node_bytes(request, sharing) / GIB)
    return [f"resources.memory above {node_gib}Gi ({sharing.text()})"]


def node_bytes(request: SharingRequest, sharing: Sharing) -> float:
    """Return what the ranks of one node take of its memory."""
    return (sharing.host_bytes + sharing.process_bytes) * request.ranks_per_node


def _fits(request: SharingRequest, sharing: Sharing) -> bool:
    """Whether accelerator and node have the memory for it."""
    limit = request.host_memory_limit_bytes
    fits_node = limit is None or node_bytes(request, sharing) <= limit
    return _fits_accelerator(request, sharing) and fits_node


def _fits_accelerator(request: SharingRequest, sharing: Sharing) -> bool:
    return sharing.memory.total <= request.memory_limit_bytes
