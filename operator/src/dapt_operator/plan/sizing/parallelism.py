"""How the ranks share the model: the cheapest way in communication whose memory fits, and what would fit otherwise.

Stages 0 to 2 move the same bytes a step, stage 3 half as many again (Rajbhandari et al. 2020, section 7); offloading
moves gradients and weights over the host's bus, twice with stage 3's weights. So the order is: no offload before any,
stage 2 before stage 3; recomputed activations (a third more compute) before either; and within one way the largest
micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.spec_training import Regularization
from dapt_operator.plan.sizing.memory import GIB, MemoryParts, host_bytes, penalty_bytes, training_memory

DEFAULT_LORA = LoraConfig()
LARGEST_WORLD = 1024
SHORTEST_SEQUENCE_TOKENS = 512


@dataclass(frozen=True)
class Wanted:
    """What is asked for, and what there is; None: left to the estimate."""

    model: ModelFacts
    lora: LoraConfig | None
    kind: str
    """`gpu` or `cpu`."""
    world_size: int
    ranks_per_node: int
    room_bytes: float
    """Of one accelerator."""
    host_room_bytes: float | None
    """Memory of one node's pod; None: unknown, and then nothing is offloaded unless it is asked for."""
    precision: str
    sequence_length_tokens: int
    micro_batch_sizes: tuple[int, ...]
    """To be tried, largest first."""
    copies: int = 1
    """Sequences that one unit of the batch holds."""
    zero_stage: int | None = None
    offload: str | None = None
    gradient_checkpointing: bool | None = None
    may_spread: bool = True
    """Whether stage 3 and offloading may be chosen."""
    regularization: Regularization | None = None


@dataclass(frozen=True)
class Sharing:
    """One way, with what it takes of an accelerator and of the node's memory for each rank."""

    zero_stage: int
    offload: str
    gradient_checkpointing: bool
    micro_batch_size: int
    memory: MemoryParts
    host_bytes: float

    def text(self) -> str:
        """`zeroStage 3 with offload optimizer: 41.2 GiB a rank and 120.0 GiB of the node's memory for it`."""
        again = ", recomputed activations" if self.gradient_checkpointing else ""
        host = f" and {self.host_bytes / GIB:.1f} GiB of node memory for it" if self.host_bytes else ""
        away = f" with offload {self.offload}" if self.offload != "none" else ""
        return f"zeroStage {self.zero_stage}{away}{again}: {self.memory.total / GIB:.1f} GiB a rank{host}"


def modes(wanted: Wanted) -> tuple[tuple[int, str], ...]:
    """(stage, offload) in the order of preference, within what is asked for."""
    alone = wanted.world_size == 1
    order: list[tuple[int, str]] = [(0 if alone else 2, "none")]
    if wanted.may_spread:
        if not alone:
            order.append((3, "none"))
        if wanted.kind == "gpu" and (wanted.host_room_bytes is not None or wanted.offload is not None):
            order += [(2, "optimizer"), (3, "optimizer"), (3, "all")]
    if wanted.lora is not None and wanted.lora.embeddings:
        # rows of new tokens cannot be trained of a spread matrix
        order = [mode for mode in order if mode[0] < 3]
    stage, offload = wanted.zero_stage, wanted.offload
    if stage is not None and offload is not None:
        return ((stage, offload),)
    if stage is not None:
        known = tuple(mode for mode in order if mode[0] == stage)
        away = any(mode[1] == "optimizer" for mode in order) and stage in (1, 2)
        return (
            ((stage, "none"), *(((stage, "optimizer"),) if away else ()))
            if stage < 3
            else known or ((3, "none"),)
        )
    if offload is not None:
        least = {"none": (0 if alone else 2), "optimizer": 2, "all": 3}[offload]
        return tuple(mode for mode in order if mode[1] == offload) or ((least, offload),)
    return tuple(order)


def ways(wanted: Wanted) -> Iterator[Sharing]:
    """Every way in the order of preference."""
    asked = wanted.gradient_checkpointing
    for stage, offload in modes(wanted):
        host = host_bytes(
            wanted.model, wanted.lora, world_size=wanted.world_size, zero_stage=stage,
            precision=wanted.precision, offload=offload if wanted.kind == "gpu" else "none",
        )  # fmt: skip
        penalty = penalty_bytes(
            wanted.regularization, wanted.model, wanted.lora, world_size=wanted.world_size, zero_stage=stage,
            precision=wanted.precision,
        )  # fmt: skip
        for checkpointing in (False, True) if asked is None else (asked,):
            for size in wanted.micro_batch_sizes:
                memory = training_memory(
                    wanted.model, wanted.lora, kind=wanted.kind, world_size=wanted.world_size, zero_stage=stage,
                    precision=wanted.precision, micro_batch_size=size * wanted.copies,
                    sequence_length_tokens=wanted.sequence_length_tokens, gradient_checkpointing=checkpointing,
                    offload=offload, penalty=penalty,
                )  # fmt: skip
                yield Sharing(stage, offload, checkpointing, size, memory, host)


def fits(wanted: Wanted, way: Sharing) -> bool:
    """Whether accelerator and node have room for it."""
    node = wanted.host_room_bytes
    return _on_card(wanted, way) and (node is None or way.host_bytes * wanted.ranks_per_node <= node)


def _on_card(wanted: Wanted, way: Sharing) -> bool:
    return way.memory.total <= wanted.room_bytes


def choose(wanted: Wanted) -> Sharing | None:
    """The first way that fits."""
    return next((way for way in ways(wanted) if fits(wanted, way)), None)


def smallest(wanted: Wanted) -> Sharing:
    """The way that takes least of an accelerator, for the message of a refusal."""
    return min(ways(wanted), key=lambda way: way.memory.total)


def what_would_fit(wanted: Wanted) -> list[str]:
    """Changes, one at a time, with which a way fits; nearest to what is asked for first."""
    found: list[str] = []

    def attempt(change: str, other: Wanted) -> bool:
        way = choose(other)
        if way is not None:
            found.append(f"{change} ({way.text()})")
        return way is not None

    free = replace(wanted, zero_stage=None, offload=None, gradient_checkpointing=None)
    if free != wanted and attempt("pretraining.distribution left to the estimate", free):
        return found
    if wanted.micro_batch_sizes != (1,):
        attempt("micro-batches of 1", replace(free, micro_batch_sizes=(1,)))
    free = replace(free, micro_batch_sizes=(1,))
    if wanted.lora is None:
        attempt("lora", replace(free, lora=DEFAULT_LORA))
    if wanted.host_room_bytes is not None or wanted.kind == "gpu":
        roomy = next(
            (way for way in ways(replace(free, host_room_bytes=math.inf)) if _on_card(free, way)), None
        )
        if roomy is not None and roomy.host_bytes:
            node = math.ceil(roomy.host_bytes * wanted.ranks_per_node / GIB)
            found.append(f"resources.memory above {node}Gi ({roomy.text()})")
    length = wanted.sequence_length_tokens // 2
    while length >= SHORTEST_SEQUENCE_TOKENS:
        if attempt(f"sequences of {length} tokens", replace(free, sequence_length_tokens=length)):
            break
        length //= 2
    ranks = wanted.world_size * 2
    while ranks <= LARGEST_WORLD:
        if attempt(f"{ranks} ranks", replace(free, world_size=ranks)):
            break
        ranks *= 2
    return found
