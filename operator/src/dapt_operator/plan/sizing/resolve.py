"""'Automatic' and the defaults that depend on something else, brought to numbers.

Raises `RefusedError` for what the numbers rule out; the message says which field, which value, and what would do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dapt_contract.measure import Measure
from dapt_contract.stages.common import (
    LoraConfig,
)
from dapt_contract.stages.prepare import ModelFacts, PrepareFacts, TokenizerExtensionConfig
from dapt_operator.api.quantity import parse_quantity
from dapt_operator.api.v1alpha1.conditions import INVALID_SPEC, NOT_ENOUGH_MEMORY
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_training import Lora, Method
from dapt_operator.plan.sizing.memory import GIB, MemoryParts
from dapt_operator.plan.sizing.parallelism import Wanted, choose, smallest, what_would_fit

FULL_LEARNING_RATE = 2.0e-5
LORA_LEARNING_RATE = 1.0e-4
FULL_PREFERENCE_RATE = 5.0e-7
LORA_PREFERENCE_RATE = 5.0e-6
"""The rates of Zephyr (Tunstall et al. 2023): DPO moves a model that is nearly right, and SFT's rates spoil it."""
WEAK_REPLAY_FRACTION = 0.05
STRONG_REPLAY_FRACTION = 0.25
STRONG_SHIFT_NATS = 1.0
MAX_CHECKPOINTS = 50
LARGEST_SEQUENCE_TOKENS = 4096
MICRO_BATCH_TOKENS = {"gpu": 32_768, "cpu": 1024}
"""More tokens in one forward pass gain nothing: a GPU is busy, a CPU's caches are full."""


class RefusedError(Exception):
    """The spec asks for what cannot be; trying again does not help, changing the spec does."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class RankLayout:
    """The ranks of a training stage."""

    nodes: int
    processes_per_node: int
    accelerators_per_node: int

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class Batch:
    """How the global batch is made, and what it takes."""

    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    zero_stage: int
    gradient_checkpointing: bool
    precision: str
    memory: MemoryParts
    offload: str = "none"
    host_bytes: float = 0.0
    """What a rank keeps in its node's memory instead of on its accelerator."""


@dataclass(frozen=True)
class Steps:
    """The budget in steps."""

    total_tokens: int
    total_steps: int
    checkpoint_steps: tuple[int, ...]


def lora_config(method: Method) -> LoraConfig | None:
    """The adapters' settings; None for full training."""
    lora: Lora | None = method.lora
    if lora is None:
        return None
    return LoraConfig(
        rank=lora.rank, alpha=float(lora.effective_alpha), dropout=lora.dropout, targets=lora.targets
    )


def learning_rate(method: Method, asked: float | None) -> float:
    """2e-5 for full training, 1e-4 for LoRA (docs/training.md)."""
    if asked is not None:
        return asked
    return LORA_LEARNING_RATE if method.lora is not None else FULL_LEARNING_RATE


def preference_learning_rate(method: Method, asked: float | None) -> float:
    """5e-7 for full training, 5e-6 for LoRA."""
    if asked is not None:
        return asked
    return LORA_PREFERENCE_RATE if method.lora is not None else FULL_PREFERENCE_RATE


def pretrain_gang(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> RankLayout:
    """`resources`, or the profile's accelerators a node."""
    per_node = spec.resources.gpus_per_node or profile.accelerator.per_node
    gpus = per_node if profile.accelerator.kind == "gpu" else 0
    return RankLayout(spec.resources.nodes, per_node, gpus)


def finetune_gang(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> RankLayout:
    """One node with the accelerators of pretraining's nodes, unless `stageResources.finetune` says otherwise."""
    asked = spec.stage_resources.finetune.gpus if spec.stage_resources.finetune else None
    per_node = asked or pretrain_gang(spec, profile).processes_per_node
    return RankLayout(1, per_node, per_node if profile.accelerator.kind == "gpu" else 0)


def align_gang(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> RankLayout:
    """As fine-tuning's, unless `stageResources.align` says otherwise."""
    asked = spec.stage_resources.align.gpus if spec.stage_resources.align else None
    per_node = asked or finetune_gang(spec, profile).processes_per_node
    return RankLayout(1, per_node, per_node if profile.accelerator.kind == "gpu" else 0)


def replay_fraction(spec: DomainAdaptationSpec, base: Measure | None) -> float | None:
    """Share of general tokens: as asked, 0 with `generalUse: measure`, else by the measured shift.

    The shift is the base model's domain loss minus its general loss, in nats a token. From 0 to 1 nat the share rises
    in a straight line from 0.05 to 0.25: 5 % is enough for a weak shift, a shift of a language's size (about 1 nat)
    still forgets much at 10 % (Ibrahim et al. 2024). Rounded to 0.01. None before the base model was measured.
    """
    if spec.corpus.general_use == "measure":
        return 0.0
    if spec.corpus.replay_fraction is not None:
        return spec.corpus.replay_fraction
    return None if base is None else replay_by_shift(shift_nats(base))


def shift_nats(base: Measure) -> float:
    """How much worse the base model predicts the domain than general text, in nats a token."""
    return base.domain.both.loss_nats - base.general.both.loss_nats


def replay_by_shift(shift: float) -> float:
    """Share of general tokens for a shift in nats; see `replay_fraction`."""
    share = min(max(shift / STRONG_SHIFT_NATS, 0.0), 1.0)
    return round(WEAK_REPLAY_FRACTION + share * (STRONG_REPLAY_FRACTION - WEAK_REPLAY_FRACTION), 2)


def sequence_length(spec: DomainAdaptationSpec, prepare: PrepareFacts | None) -> int | None:
    """What prepare packed; before that what the spec says."""
    return prepare.sequence_length_tokens if prepare else spec.corpus.sequence_length


def budget_steps(
    spec: DomainAdaptationSpec,
    *,
    domain_tokens: int | None,
    replay: float | None,
    sequence_length_tokens: int,
) -> Steps | None:
    """Total tokens, steps and checkpoints; None while the corpus is not counted and the budget is in epochs.

    With epochs: total tokens = domain tokens x epochs / (1 - replay), since replay replaces nothing of the passes.
    """
    budget = spec.pretraining.budget
    a_step = spec.pretraining.global_batch_size * sequence_length_tokens
    if budget.steps is not None:
        steps, tokens = budget.steps, budget.steps * a_step
    else:
        if budget.tokens is not None:
            tokens = budget.tokens
        elif domain_tokens is not None and replay is not None:
            tokens = round(domain_tokens * (budget.epochs or 1.0) / (1.0 - replay))
        else:
            return None
        steps = max(1, round(tokens / a_step))
    count = min(spec.pretraining.checkpoints.count, steps, MAX_CHECKPOINTS)
    return Steps(tokens, steps, tuple(round(number * steps / count) for number in range(1, count + 1)))


def check_divisible(field: str, global_batch_size: int, parts: int, explained: str) -> None:
    """Refuse a batch that cannot be shared equally, with the nearest that can."""
    if global_batch_size % parts == 0:
        return
    below = global_batch_size // parts * parts
    nearest = f"{below} or {below + parts}" if below else str(parts)
    raise RefusedError(
        INVALID_SPEC,
        f"{field} is {global_batch_size}, which cannot be divided by {parts} ({explained}): write {nearest}",
    )


def check_batch(spec: DomainAdaptationSpec, gang: RankLayout) -> None:
    """Refuse a pretraining batch that the ranks cannot share, as far as that is known without a model."""
    micro = spec.pretraining.micro_batch_size or 1
    check_divisible(
        "spec.pretraining.globalBatchSize",
        spec.pretraining.global_batch_size,
        gang.world_size * micro,
        _shared_by(gang, micro),
    )


def check_finetuning_batch(spec: DomainAdaptationSpec, gang: RankLayout) -> None:
    """The same for fine-tuning, so that its mistake does not cost the pretraining."""
    tuning = spec.finetuning
    if tuning is None or tuning.global_batch_size is None:
        return
    micro = tuning.micro_batch_size or 1
    share = gang.world_size * micro
    check_divisible(
        "spec.finetuning.globalBatchSize", tuning.global_batch_size, share, _shared_by(gang, micro)
    )


def _shared_by(gang: RankLayout, micro_batch_size: int) -> str:
    nodes = "1 node" if gang.nodes == 1 else f"{gang.nodes} nodes"
    processes = "1 process" if gang.processes_per_node == 1 else f"{gang.processes_per_node} processes"
    micro = f" x micro-batch {micro_batch_size}" if micro_batch_size > 1 else ""
    return f"{nodes} x {processes}{micro}"


def fit_batch(
    model: ModelFacts,
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    gang: RankLayout,
    *,
    stage: str,
    lora: LoraConfig | None,
    global_batch_size: int,
    micro_batch_size: int | None,
    sequence_length_tokens: int,
    copies: int = 1,
) -> Batch:
    """How the ranks share the model, and the largest micro-batch that fits so (`sharing`), by the estimate.

    `copies`: sequences that one unit of the batch holds; a DPO pair holds two.

    Raises:
        RefusedError: nothing fits, with the parts of the smallest try and what would fit; or the batch cannot be
            divided.
    """
    asked = spec.pretraining.distribution
    kind = profile.accelerator.kind
    field = f"spec.{stage}.globalBatchSize"
    share = gang.world_size * (micro_batch_size or 1)
    check_divisible(field, global_batch_size, share, _shared_by(gang, micro_batch_size or 1))
    per_rank = global_batch_size // gang.world_size
    choices = [size for size in range(per_rank, 0, -1) if per_rank % size == 0]
    if micro_batch_size is None:
        most = max(1, MICRO_BATCH_TOKENS[kind] // sequence_length_tokens)
        choices = [size for size in choices if size <= most]
    else:
        choices = [size for size in choices if size <= micro_batch_size]
        choices = choices[:1]
    wanted = Wanted(
        model=model,
        lora=lora,
        kind=kind,
        world_size=gang.world_size,
        ranks_per_node=gang.processes_per_node,
        room_bytes=profile.accelerator.memory_gib * GIB,
        host_room_bytes=_node_memory(spec, stage),
        precision=asked.precision or ("bf16" if kind == "gpu" else "fp32"),
        sequence_length_tokens=sequence_length_tokens,
        micro_batch_sizes=tuple(choices),
        copies=copies,
        zero_stage=asked.zero_stage,
        offload=asked.offload,
        gradient_checkpointing=asked.gradient_checkpointing,
        may_spread=stage != "pretraining" or spec.pretraining.regularization is None,
        regularization=spec.pretraining.regularization if stage == "pretraining" else None,
    )
    way = choose(wanted)
    if way is None:
        raise _too_large(stage, profile, wanted)
    return Batch(
        global_batch_size,
        way.micro_batch_size,
        per_rank // way.micro_batch_size,
        way.zero_stage,
        way.gradient_checkpointing,
        wanted.precision,
        way.memory,
        way.offload,
        way.host_bytes,
    )


def _node_memory(spec: DomainAdaptationSpec, stage: str) -> float | None:
    """Bytes that a pod of the stage may use; None where the profile's pod template decides."""
    others = spec.stage_resources
    own = {"finetuning": others.finetune, "preference": others.align}.get(stage)
    memory = (own.memory if own else None) or spec.resources.memory
    return None if memory is None else parse_quantity(str(memory))


def _too_large(stage: str, profile: AdaptationProfileSpec, wanted: Wanted) -> RefusedError:
    least = smallest(wanted)
    others = what_would_fit(wanted)
    host = ""
    if least.memory.total <= wanted.room_bytes and wanted.host_room_bytes is not None:
        host = (
            f", and {least.host_bytes * wanted.ranks_per_node / GIB:.1f} GiB of a node's memory, of which"
            f" resources.memory gives {wanted.host_room_bytes / GIB:.1f}"
        )
    advice = (
        f"what would fit: {'; '.join(others)}"
        if others
        else "use lora, a shorter corpus.sequenceLength, more ranks, or a profile with more memory"
    )
    return RefusedError(
        NOT_ENOUGH_MEMORY,
        f"{stage} needs {least.memory.total / GIB:.1f} GiB a rank by the estimate ({least.memory.text()}) and the"
        f" profile's accelerator.memoryGiB is {profile.accelerator.memory_gib:g}{host}: {advice}",
    )


def halved(batch: Batch, halvings: int) -> Batch | None:
    """The same global batch with the micro-batch at most half, `halvings` times; None when it is 1 already."""
    per_rank = batch.micro_batch_size * batch.accumulation
    size = batch.micro_batch_size
    for _ in range(halvings):
        if size == 1:
            return None
        size = max(divisor for divisor in range(1, size // 2 + 1) if per_rank % divisor == 0)
    return replace(batch, micro_batch_size=size, accumulation=per_rank // size)


def tokenizer_extension(spec: DomainAdaptationSpec) -> TokenizerExtensionConfig | None:
    """How the tokenizer grows, where that is asked for."""
    asked = spec.model.tokenizer.extend if spec.model.tokenizer is not None else None
    if asked is None:
        return None
    return TokenizerExtensionConfig(
        vocabulary_size=asked.vocabulary_size, minimum_frequency=asked.minimum_frequency
    )


def pretraining_lora(spec: DomainAdaptationSpec) -> LoraConfig | None:
    """The adapters of pretraining; with a grown tokenizer embedding and head are trained too."""
    adapters = lora_config(spec.pretraining.method)
    if adapters is None or tokenizer_extension(spec) is None:
        return adapters
    return adapters.model_copy(update={"embeddings": True})
