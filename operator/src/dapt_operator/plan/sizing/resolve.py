"""Brings 'automatic' and the defaults that depend on other fields to numbers: rates, ranks, replay, steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from dapt_contract.measure import Measure
from dapt_contract.stages.common import LoraConfig, Precision
from dapt_contract.stages.prepare import PrepareFacts, TokenizerExtensionConfig
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_operation import GpuResources
from dapt_operator.api.v1alpha1.spec_training import Method
from dapt_operator.plan.sizing.batch_size import pretraining_batch_size

FULL_LEARNING_RATE: Final = 2.0e-5
LORA_LEARNING_RATE: Final = 1.0e-4
FULL_PREFERENCE_RATE: Final = 5.0e-7
LORA_PREFERENCE_RATE: Final = 5.0e-6
"""The rates of Zephyr (Tunstall et al. 2023): DPO moves a model that is nearly right, and SFT's rates spoil it."""
WEAK_REPLAY_FRACTION: Final = 0.05
STRONG_REPLAY_FRACTION: Final = 0.25
STRONG_SHIFT_NATS: Final = 0.5
"""From here on the recorded runs need the strong share, whatever the shift (docs/training.md)."""
EARLIER_STRONG_SHIFT_NATS: Final = 1.0
"""Of versions that did not store the share before the attempt starts; theirs is computed from this line again."""
RECORDED_SHIFTS_NATS: Final = (0.5, 1.1)
RECORDED_SHARES: Final = (0.15, 0.30)
"""Where the line of `replay_within` is fitted."""
RECORDED_LINE: Final = (-1.44, -2.71, 0.06)
"""Level, fall by share and rise by shift of ln of the forgotten nats (`science/replay_share.py`)."""
LARGEST_SEQUENCE_TOKENS: Final = 4096


class RefusedError(Exception):
    """The spec asks for what cannot be; a retry does not help, a change of the spec does."""

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
        """Number of ranks on all nodes."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class Steps:
    """The budget in steps."""

    total_tokens: int
    total_steps: int
    checkpoint_steps: tuple[int, ...]
    global_batch_size: int
    """Sequences of a step, over all ranks."""


def lora_config(method: Method) -> LoraConfig | None:
    """Return the adapters' settings; None for full training."""
    lora = method.lora
    if lora is None:
        return None
    return LoraConfig(
        rank=lora.rank, alpha=float(lora.effective_alpha), dropout=lora.dropout, targets=lora.targets
    )


def pretraining_lora(spec: DomainAdaptationSpec) -> LoraConfig | None:
    """Return the adapters of pretraining; with a grown tokenizer embedding and head are trained too."""
    adapters = lora_config(spec.pretraining.method)
    if adapters is None or tokenizer_extension(spec) is None:
        return adapters
    return adapters.with_embeddings()


def tokenizer_extension(spec: DomainAdaptationSpec) -> TokenizerExtensionConfig | None:
    """Return how the tokenizer grows; None where the spec does not ask for it."""
    extend = spec.model.tokenizer.extend if spec.model.tokenizer is not None else None
    if extend is None:
        return None
    return TokenizerExtensionConfig(
        vocabulary_size=extend.vocabulary_size, minimum_frequency=extend.minimum_frequency
    )


def learning_rate(method: Method, requested: float | None) -> float:
    """Return the requested rate, else 2e-5 for full training and 1e-4 for LoRA (docs/training.md)."""
    if requested is not None:
        return requested
    return LORA_LEARNING_RATE if method.lora is not None else FULL_LEARNING_RATE


def preference_learning_rate(method: Method, requested: float | None) -> float:
    """Return the requested rate, else 5e-7 for full training and 5e-6 for LoRA."""
    if requested is not None:
        return requested
    return LORA_PREFERENCE_RATE if method.lora is not None else FULL_PREFERENCE_RATE


def training_precision(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> Precision:
    """Return the requested number format, else bf16 on GPUs and fp32 on CPUs."""
    return spec.pretraining.distribution.precision or (
        "bf16" if profile.accelerator.kind == "gpu" else "fp32"
    )


def pretrain_layout(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> RankLayout:
    """Return the ranks of `resources`, where these are absent of one node with all its accelerators."""
    per_node = spec.resources.gpus_per_node or profile.accelerator.per_node
    return layout_of(spec.resources.nodes, per_node, profile)


def finetune_layouts(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> tuple[RankLayout, ...]:
    """Return the ranks that fine-tuning may have, most nodes first.

    As `stageResources.finetune` says, else those of pretraining and of halves of its nodes, since small data does not
    fill a batch over all of them.
    """
    return _tuning_layouts(spec, profile, (spec.stage_resources.finetune,))


def align_layouts(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> tuple[RankLayout, ...]:
    """Return the ranks that preference tuning may have: as `stageResources.align` says, else those of fine-tuning."""
    return _tuning_layouts(spec, profile, (spec.stage_resources.align, spec.stage_resources.finetune))


def _tuning_layouts(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, blocks: tuple[GpuResources | None, ...]
) -> tuple[RankLayout, ...]:
    """Return the layouts by the first of these blocks that gives nodes or GPUs."""
    pretraining = pretrain_layout(spec, profile)
    own = next((block for block in blocks if block is not None and (block.nodes or block.gpus)), None)
    if own is not None:
        return (layout_of(own.nodes or 1, own.gpus or pretraining.processes_per_node, profile),)
    nodes = [pretraining.nodes]
    while nodes[-1] > 1:
        nodes.append(nodes[-1] // 2)
    return tuple(layout_of(number, pretraining.processes_per_node, profile) for number in nodes)


def layout_of(nodes: int, processes_per_node: int, profile: AdaptationProfileSpec) -> RankLayout:
    """Return these ranks; on a GPU profile each has an accelerator."""
    accelerators = processes_per_node if profile.accelerator.kind == "gpu" else 0
    return RankLayout(nodes, processes_per_node, accelerators)


def replay_fraction(spec: DomainAdaptationSpec, base: Measure | None) -> float | None:
    """Return the share of general tokens: as requested, 0 with `generalUse: measure`, else by the measured shift.

    The shift is the base model's domain loss minus its general loss, in nats a token. From 0 to half a nat
    the share rises in a straight line from 0.05 to 0.25: 5 % is enough for a weak shift (Ibrahim et al. 2024), and
    between 0.56 and 1.06 nats the recorded runs keep the default limit at 0.25 with seeds to spare, whatever the shift
    (`science/replay_share.py`). Rounded to 0.01. None before the base model was measured.
    """
    requested = requested_replay(spec)
    if requested is not None or base is None:
        return requested
    return replay_by_shift(shift_nats(base))


def requested_replay(spec: DomainAdaptationSpec) -> float | None:
    """Return the share of general tokens by the spec alone; None where the measured shift chooses it."""
    return 0.0 if spec.corpus.general_use == "measure" else spec.corpus.replay_fraction


def shift_nats(base: Measure) -> float:
    """Return how much worse the base model predicts the domain than general text, in nats a token."""
    return base.domain.both.loss_nats - base.general.both.loss_nats


def replay_by_shift(shift: float) -> float:
    """Return the share of general tokens for a shift in nats; see `replay_fraction`."""
    return _replay_on_line(shift, STRONG_SHIFT_NATS)


def earlier_replay_by_shift(shift: float) -> float:
    """Return the share of an attempt that was started by a version that did not store it; it never changes."""
    return _replay_on_line(shift, EARLIER_STRONG_SHIFT_NATS)


def _replay_on_line(shift: float, strong_shift: float) -> float:
    share = min(max(shift / strong_shift, 0.0), 1.0)
    return round(WEAK_REPLAY_FRACTION + share * (STRONG_REPLAY_FRACTION - WEAK_REPLAY_FRACTION), 2)


def replay_within(increase: float, shift: float) -> float | None:
    """Return the share with which the recorded runs, without interpolation, end at this rise of general perplexity.

    Solves ln(forgotten nats) = level + fall x share + rise x shift (docs/science.md) and rounds up to 0.01. None
    outside the shifts and shares of the records.
    """
    if not RECORDED_SHIFTS_NATS[0] <= shift <= RECORDED_SHIFTS_NATS[1] or increase <= 0.0:
        return None
    level, fall, rise = RECORDED_LINE
    share = (math.log(math.log1p(increase)) - level - rise * shift) / fall
    return math.ceil(100 * share) / 100 if RECORDED_SHARES[0] <= share <= RECORDED_SHARES[1] else None


def sequence_length(spec: DomainAdaptationSpec, prepare: PrepareFacts | None) -> int | None:
    """Return the sequence length that prepare packed; before that what the spec has."""
    return prepare.sequence_length_tokens if prepare else spec.corpus.sequence_length


def budget_steps(
    spec: DomainAdaptationSpec,
    *,
    ranks: int,
    domain_tokens: int | None,
    replay: float | None,
    sequence_length_tokens: int,
) -> Steps | None:
    """Return total tokens, steps and checkpoints; None while the corpus is not counted and the budget is in epochs."""
    budget = spec.pretraining.budget
    depends_on_corpus = budget.steps is None and budget.tokens is None
    if depends_on_corpus and (domain_tokens is None or replay is None):
        return None
    return counted_steps(
        spec,
        ranks=ranks,
        domain_tokens=domain_tokens or 0,
        replay=replay or 0.0,
        sequence_length_tokens=sequence_length_tokens,
    )


def counted_steps(
    spec: DomainAdaptationSpec,
    *,
    ranks: int,
    domain_tokens: int,
    replay: float,
    sequence_length_tokens: int,
) -> Steps:
    """Return total tokens, steps, checkpoints and the global batch of a corpus that was counted.

    With epochs: total tokens = domain tokens x epochs / (1 - replay), since replay replaces nothing of the passes.
    """
    budget = spec.pretraining.budget
    tokens = budget.tokens or round(domain_tokens * (budget.epochs or 1.0) / (1.0 - replay))
    batch_size = pretraining_batch_size(
        spec, ranks, total_tokens=tokens, sequence_length_tokens=sequence_length_tokens
    )
    tokens_per_step = batch_size * sequence_length_tokens
    if budget.steps is not None:
        steps, tokens = budget.steps, budget.steps * tokens_per_step
    else:
        steps = max(1, round(tokens / tokens_per_step))
    checkpoint_steps = evenly_spaced(steps, min(spec.pretraining.checkpoints.count, steps))
    return Steps(tokens, steps, checkpoint_steps, batch_size)


def evenly_spaced(steps: int, checkpoints: int) -> tuple[int, ...]:
    """Return the steps after which a checkpoint is written; the last one is the last step."""
    return tuple(round(number * steps / checkpoints) for number in range(1, checkpoints + 1))
