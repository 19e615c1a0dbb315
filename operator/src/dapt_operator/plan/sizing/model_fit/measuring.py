"""Chooses how a stage that measures divides its model over GPUs: the fewest that hold one copy by the estimate.

One GPU where the model fits. Else tensor parallelism over two, four or more of one node: every rank computes with its
slices of each matrix, and two sums a layer travel over the node's links. Else ZeRO 3 over one node or several, which
gathers each layer's weights when they are used. Further ranks hold further copies, which share the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Final, Literal

from dapt_contract.inputs.model_size import WEIGHT_BYTES
from dapt_contract.stages.common import LIVE_PARAMETERS, ModelSpread
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.quantity import parse_quantity
from dapt_operator.api.v1alpha1.conditions import INVALID_SPEC, NOT_ENOUGH_MEMORY
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_blends, has_scores
from dapt_operator.api.v1alpha1.spec_operation import MeasuringResources
from dapt_operator.number_format import plural
from dapt_operator.plan.sizing.model_fit.memory import (
    FREE_FRACTION,
    GIB,
    OVERHEAD_BYTES,
    AcceleratorKind,
    process_host_bytes,
    usable_bytes,
)
from dapt_operator.plan.sizing.resolve import RankLayout, RefusedError, layout_of, pretrain_layout

PASS_TOKENS: Final = 4096
"""Padded tokens of one forward pass over held-out text, items and prompts; a longer sequence is a pass of its own."""
LOGITS_BYTES: Final = 256 * 2**20
"""Logits of the scored positions, with their copies, that exist at a time: the trainer computes them in parts."""
LARGEST_SPREAD: Final = 1024
"""Ranks of one copy that a refusal proposes at most."""

MeasuringStage = Literal["baseline", "evaluate", "blend", "verify"]
"""Stages that measure models. blend has the resources of evaluate."""


@dataclass(frozen=True)
class MeasuringMemory:
    """Bytes on one rank's accelerator while a model is measured. The names are what messages call the parts."""

    weights: float
    activations: float
    logits: float
    generation: float
    """Keys and values of the answers that are generated."""
    overhead: float

    @property
    def total(self) -> float:
        """Their sum."""
        return float(sum(getattr(self, part.name) for part in fields(self)))

    def text(self) -> str:
        """Return `weights 14.9 GiB, overhead ...`, largest first, without parts below 0.05 GiB."""
        parts = sorted(asdict(self).items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {value / GIB:.1f} GiB" for name, value in parts if value >= 0.05 * GIB)


@dataclass(frozen=True)
class MeasuringPlan:
    """The ranks of a measuring stage, how they divide the model, and the memory that it takes."""

    layout: RankLayout
    spread: ModelSpread
    memory: MeasuringMemory
    limit_bytes: float
    """What a plan may fill of one accelerator, or of one process' share on a CPU."""
    host_bytes: float
    """Memory of one node that its ranks take; 0 on a CPU, where `memory` is the node's."""


@dataclass(frozen=True)
class MeasuringRequest:
    """What is measured, and where."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    model: ModelFacts
    """With the rows of a grown tokenizer."""
    sequence_length_tokens: int
    """Longest context that a token is scored with."""
    stage: MeasuringStage

    @property
    def kind(self) -> AcceleratorKind:
        """Kind of the profile's accelerators."""
        return self.profile.accelerator.kind

    @property
    def own(self) -> MeasuringResources:
        """What `stageResources` says of the stage."""
        return getattr(self.spec.stage_resources, self.block) or MeasuringResources()

    @property
    def block(self) -> str:
        """Name of the stage's block in `stageResources`."""
        return "evaluate" if self.stage == "blend" else self.stage


def measuring_memory(request: MeasuringRequest, spread: ModelSpread) -> MeasuringMemory:
    """Return the parts of one rank's memory: weights in bf16 (on CPUs fp32), and one layer's activations of a pass.

    Tensor parallelism divides the matrices of the layers and the head; the embedding is whole on each rank. ZeRO 3
    divides all weights, gathers some of them at a time, and computes the logits of a whole pass at once, since the
    head's weights exist only within the model's own forward pass.
    """
    model, ranks = request.model, spread.ranks_per_model
    element = WEIGHT_BYTES["bf16" if request.kind == "gpu" else "fp32"]
    embedding = model.vocabulary_size * model.hidden_size
    tokens = max(PASS_TOKENS, request.sequence_length_tokens)
    slices = ranks if spread.method == "tensorParallel" else 1
    logits = float(LOGITS_BYTES)
    if spread.method == "zero3" and ranks > 1:
        weights = model.parameters / ranks + min(model.parameters, max(LIVE_PARAMETERS, embedding))
        logits += tokens * model.vocabulary_size * element
    else:
        weights = embedding + (model.parameters - embedding) / ranks
    whole = (
        4 + 4 * element
    ) * model.hidden_size  # the residual stream, its fp32 copy in a norm, and the norm's output
    mlp = (4 if model.gated_mlp else 2) * model.intermediate_size
    sliced = element * (2 * model.query_width + 2 * model.key_width + mlp) / slices
    generated = PASS_TOKENS * model.layers * 2 * model.key_width * element / slices
    return MeasuringMemory(
        weights=element * weights,
        activations=tokens * (whole + sliced),
        logits=logits,
        generation=generated,
        overhead=OVERHEAD_BYTES[request.kind],
    )


def choose_measuring(request: MeasuringRequest) -> MeasuringPlan:
    """Return the ranks of the stage and how they divide the model: the first way that fits.

    Raises:
        RefusedError: none fits, with what would; or the GPUs that the spec gives do not hold whole copies.
    """
    plans = [_plan(request, layout, spread) for layout, spread in _ways(request)]
    if not plans:
        raise RefusedError(INVALID_SPEC, _indivisible(request))
    for plan in plans:
        if plan.memory.total <= plan.limit_bytes and _fits_node(request, plan):
            return plan
    raise RefusedError(NOT_ENOUGH_MEMORY, _too_large(request, plans))


def _plan(request: MeasuringRequest, layout: RankLayout, spread: ModelSpread) -> MeasuringPlan:
    memory = measuring_memory(request, spread)
    processes = layout.processes_per_node
    limit = usable_bytes(request.profile.accelerator.memory_gib)
    if request.kind == "cpu":
        # The processes of a CPU profile share the memory that those of pretraining have together.
        limit *= max(1.0, pretrain_layout(request.spec, request.profile).processes_per_node / processes)
    host = processes * process_host_bytes(request.kind, memory.weights)
    return MeasuringPlan(layout, spread, memory, limit, host)


def _fits_node(request: MeasuringRequest, plan: MeasuringPlan) -> bool:
    limit = _node_limit(request)
    return limit is None or plan.host_bytes <= limit


def _node_limit(request: MeasuringRequest) -> float | None:
    """Return the memory that a pod of the stage may use; None where the profile's pod template decides."""
    memory = request.own.memory or request.spec.resources.memory
    return None if memory is None else parse_quantity(str(memory))


def _ways(request: MeasuringRequest) -> Iterator[tuple[RankLayout, ModelSpread]]:
    """Yield (layout, spread) in the order of preference, within what `stageResources` gives."""
    own, profile = request.own, request.profile
    pretraining = pretrain_layout(request.spec, profile)
    per_node = own.gpus or pretraining.processes_per_node
    is_fixed = own.gpus is not None or own.nodes is not None
    most_nodes = own.nodes or (1 if own.gpus else pretraining.nodes)
    for ranks, method in _spreads(request, per_node, most_nodes):
        nodes = math.ceil(ranks / per_node)
        processes = per_node if is_fixed or nodes > 1 else ranks
        layout = layout_of(most_nodes if is_fixed else nodes, processes, profile)
        # A copy lies on one node or takes whole nodes, so that what travels most stays on a node's links.
        is_whole = ranks % processes == 0 if ranks > processes else processes % ranks == 0
        if is_whole and nodes <= most_nodes and layout.world_size % ranks == 0:
            yield layout, ModelSpread(ranks_per_model=ranks, method=method)


def _spreads(
    request: MeasuringRequest, per_node: int, most_nodes: int
) -> Iterator[tuple[int, Literal["tensorParallel", "zero3"]]]:
    """Yield the ranks of one copy and how they share it, fewest and cheapest first."""
    requested = request.own.gpus_per_model
    if requested is not None:
        yield requested, "tensorParallel" if _divides_heads(request.model, requested, per_node) else "zero3"
        return
    powers = [2**exponent for exponent in range(per_node.bit_length()) if 2**exponent <= per_node]
    yield from (
        (ranks, "tensorParallel") for ranks in powers if _divides_heads(request.model, ranks, per_node)
    )
    yield from ((ranks, "zero3") for ranks in sorted({*powers[1:], per_node} - {1}))
    yield from ((nodes * per_node, "zero3") for nodes in range(2, most_nodes + 1))


def _divides_heads(model: ModelFacts, ranks: int, per_node: int) -> bool:
    """Whether ranks of one node can take equal slices; a count of 0 is not known, and then only one rank can."""
    heads = (model.attention_heads, model.key_value_heads)
    return ranks == 1 or (ranks <= per_node and all(number and number % ranks == 0 for number in heads))


def _indivisible(request: MeasuringRequest) -> str:
    own, where = request.own, f"spec.stageResources.{request.block}"
    per_node = own.gpus or pretrain_layout(request.spec, request.profile).processes_per_node
    nodes = own.nodes or (1 if own.gpus else request.spec.resources.nodes)
    return (
        f"{where}.gpusPerModel is {own.gpus_per_model}, and copies of that many do not fill"
        f" {plural(nodes, 'node')} with {per_node} each: write a divisor of {per_node}, or whole nodes that divide"
        f" {where}.nodes"
    )


def _too_large(request: MeasuringRequest, plans: list[MeasuringPlan]) -> str:
    smallest = min(plans, key=lambda plan: plan.memory.total)
    unit, ranks = ("GPU" if request.kind == "gpu" else "process"), smallest.spread.ranks_per_model
    over = f" with the model over {ranks} of them" if ranks > 1 else ""
    host = ""
    if smallest.memory.total <= smallest.limit_bytes:
        host = f", and {smallest.host_bytes / GIB:.1f} GiB of a node's memory"
    return (
        f"{request.stage} needs {smallest.memory.total / GIB:.1f} GiB a {unit} by the estimate{over}"
        f" ({smallest.memory.text()}){host}, and the profile gives {smallest.limit_bytes / GIB:.1f} GiB"
        f" ({FREE_FRACTION:.0%} stay free): what would fit: {'; '.join(what_would_measure(request, plans))}"
    )


def what_would_measure(request: MeasuringRequest, plans: Sequence[MeasuringPlan]) -> list[str]:
    """Return changes, one at a time, with which the stage fits; `plans`: those that do not."""
    own, where = request.own, f"stageResources.{request.block}"
    fitting = [plan.host_bytes for plan in plans if plan.memory.total <= plan.limit_bytes]
    if fitting:
        # The accelerators hold it, so it is the node's memory that is short.
        field = f"{where}.memory" if own.memory else "resources.memory"
        return [f"{field} of at least {math.ceil(min(fitting) / GIB)}Gi"]
    proposals = []
    limit, per_node = plans[0].limit_bytes, request.profile.accelerator.per_node
    sizes = [2**exponent for exponent in range(1, LARGEST_SPREAD.bit_length())]
    for ranks in (size for size in sizes if size <= per_node or size % per_node == 0):
        is_sliced = _divides_heads(request.model, ranks, per_node)
        spread = ModelSpread(ranks_per_model=ranks, method="tensorParallel" if is_sliced else "zero3")
        memory = measuring_memory(request, spread)
        if memory.total > limit or request.kind == "cpu":
            continue
        gpus, nodes = min(ranks, per_node), math.ceil(ranks / per_node)
        field = f"{where}.gpus" if own.gpus or own.nodes else "resources.gpusPerNode"
        many = (
            f" with {field.removesuffix('gpus').removesuffix('gpusPerNode')}nodes {nodes}"
            if nodes > 1
            else ""
        )
        without = f" without {where}.gpusPerModel" if own.gpus_per_model else ""
        size = f"{memory.total / GIB:.1f} GiB a GPU with the model over {ranks}"
        proposals.append(f"{field} {gpus}{many}{without} ({size})")
        break
    whole_gib = measuring_memory(request, ModelSpread()).total / GIB / (1.0 - FREE_FRACTION)
    proposals.append(f"a profile whose accelerator.memoryGiB is at least {math.ceil(whole_gib)}")
    return proposals


def measuring_stages(spec: DomainAdaptationSpec) -> tuple[MeasuringStage, ...]:
    """Return the stages of an adaptation that measure models, in their order."""
    blend: tuple[MeasuringStage, ...] = ("blend",) if has_blends(spec) else ()
    evaluate: tuple[MeasuringStage, ...] = ("evaluate",) if has_scores(spec) else ()
    return ("baseline", *blend, *evaluate, "verify")


@dataclass(frozen=True)
class MeasuringPlans:
    """The plans of all measuring stages, and the sentences about those that cannot be."""

    plans: Mapping[MeasuringStage, MeasuringPlan]
    problems: tuple[str, ...]


def measuring_plans(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    model: ModelFacts,
    sequence_length_tokens: int,
) -> MeasuringPlans:
    """Return what is chosen for each measuring stage; stages that are refused alike share a sentence."""
    plans: dict[MeasuringStage, MeasuringPlan] = {}
    refused_by_text: dict[str, list[str]] = {}
    for stage in measuring_stages(spec):
        try:
            plans[stage] = choose_measuring(
                MeasuringRequest(spec, profile, model, sequence_length_tokens, stage)
            )
        except RefusedError as refused:
            text = refused.message.removeprefix(f"{stage} needs ")
            refused_by_text.setdefault(text, []).append(stage)
    problems = tuple(
        f"{' and '.join(filter(None, (', '.join(stages[:-1]), stages[-1])))} {'need' if len(stages) > 1 else 'needs'}"
        f" {text}"
        if not text.startswith("spec.")
        else text
        for text, stages in refused_by_text.items()
    )
    return MeasuringPlans(plans, problems)
