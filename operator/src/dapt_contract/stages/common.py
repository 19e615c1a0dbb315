"""Defines the parts that the configurations of several stages share."""

from collections.abc import Iterable
from typing import Final, Literal, Self

from pydantic import Field

from dapt_contract.base import (
    MAX_ADAPTERS,
    MAX_CHECKPOINTS,
    MAX_SEQUENCE_RANKS,
    Contract,
    DigestText,
    WorkPath,
)
from dapt_contract.layout import MODEL
from dapt_contract.measure import Side

Precision = Literal["bf16", "fp32"]
"""Number format of weights and activations in training."""
ZeroStage = Literal[0, 1, 2, 3]
"""What ZeRO divides over the ranks: nothing, optimizer state, gradients too, weights too."""
Offload = Literal["none", "optimizer", "all"]
"""What is kept in CPU memory between uses: nothing, the optimizer's state, or the weights too (ZeRO 3)."""

KEPT_OPTIMIZER_STATES: Final = 2
"""Checkpoints that keep their optimizer state: the newest, and one more in case that it is damaged."""
LIVE_PARAMETERS: Final = 500_000_000
"""Gathered weights that ZeRO 3 keeps at a time, in elements: DeepSpeed's bound, which the memory estimate counts."""


class Member(Contract):
    """Names one model of an average: full weights, and LoRA adapters that are merged into them in this order."""

    weights: WorkPath
    """Folder with safetensors, config and tokenizer, relative to the work volume."""
    adapters: tuple[WorkPath, ...] = Field(default=(), max_length=MAX_ADAPTERS)
    """PEFT adapter folders, relative to the work volume."""


class ModelReference(Contract):
    """Refers to a model on the work volume by a recipe that every stage follows in the same way.

    The order is: merge `adapters` into `weights`; take the mean with the models of `averaged_with`; interpolate between
    `origin` and the result, origin + a (model - origin) with a = `interpolation`; merge `tuned`.
    """

    weights: WorkPath
    """Folder with safetensors, config and tokenizer, relative to the work volume."""
    adapters: tuple[WorkPath, ...] = Field(default=(), max_length=MAX_ADAPTERS)
    """PEFT adapter folders, relative to the work volume."""
    averaged_with: tuple[Member, ...] = Field(default=(), max_length=MAX_CHECKPOINTS)
    """Further models of a mean of equal shares; empty: no mean is taken."""
    interpolation: float = Field(default=1.0, ge=0.0, le=1.0)
    """a: 1 is the model itself, 0 the origin."""
    origin: WorkPath = MODEL
    """Folder of the weights that the interpolation starts from: the base model, extended where its tokenizer is."""
    tuned: tuple[WorkPath, ...] = Field(default=(), max_length=MAX_ADAPTERS)
    """PEFT adapter folders of the stages after selection (SFT, DPO), merged last."""

    def averaged(self, others: "Iterable[ModelReference]") -> "ModelReference":
        """Return the mean, in equal shares, of this model and others that are weights and adapters alone."""
        members = tuple(Member(weights=other.weights, adapters=other.adapters) for other in others)
        return self.model_copy(update={"averaged_with": members})

    def interpolated(self, share: float) -> "ModelReference":
        """Return the model that lies the share `share` of the way from the origin to this one."""
        return self.model_copy(update={"interpolation": share})

    def with_tuned(self, adapter: str) -> "ModelReference":
        """Return this model with one more adapter, which is merged last."""
        return self.model_copy(update={"tuned": (*self.tuned, adapter)})

    @property
    def is_plain(self) -> bool:
        """Return whether the reference is a folder of full weights and nothing else."""
        return not (self.adapters or self.averaged_with or self.tuned or self.interpolation != 1.0)


CHECKING_FIELDS: Final = frozenset({"recorded", "prepared_digest", "base_items_digest", "base_losses_digest"})
"""Fields of configurations that only check what a stage reads, or say how sure it is of a loss: they change no measured
number of its result."""

FIELDS_ABSENT_IF_NONE: Final = frozenset({"adapter", "base_losses_digest"})
"""Fields of configurations that are no part of a digest while they are None: the runs that a version without them has
created keep their digests."""


LAYOUT_FIELDS: Final = frozenset({"spread", "sequence_parallel", "keeps", "memory_bytes"})
"""Fields of configurations that only say how the ranks divide the work, or what stays on the volume: the result has the
same numbers, so they are no part of the digest by which a run's work is known again. Versions without them gave the
same digest."""


class RecordedDigests(Contract):
    """Holds what was recorded of a model's weights when they were written or measured; other weights are refused.

    A digest may be the beginning of the whole one: a row of checkpoints holds 12 digits.
    """

    recipe: DigestText | None = None
    """Digest of the whole recipe; None: it was never measured as a whole."""
    folders: tuple[tuple[WorkPath, DigestText], ...] = ()
    """(folder on the work volume, digest of its weights); folders of which nothing was recorded are missing."""


class ModelSpread(Contract):
    """Says how a measuring stage divides one model over its ranks; the other ranks hold replicas of it."""

    ranks_per_model: int = Field(default=1, ge=1)
    """Consecutive ranks that share one copy of the weights; the number of ranks is a multiple. 1: all have a whole
    model. DeepSpeed divides over all ranks of a stage: with `zero3` this is the least number that holds the model."""
    method: Literal["tensorParallel", "zero3"] = "tensorParallel"
    """How they share it: each computes with its slices of every matrix (ranks of one node), or each layer's weights
    are gathered when they are used (ZeRO 3). Slices need a plan of transformers for the architecture, and numbers of
    attention heads and key-value heads that the ranks divide: a model that has not is divided by ZeRO 3."""


class LoraConfig(Contract):
    """Configures low-rank adapters (Hu et al. 2021) on all linear layers but the head."""

    rank: int = 64
    alpha: float = 128
    dropout: float = 0.0
    targets: str = "all-linear"
    embeddings: bool = False
    """Whether embedding and head are trained too: an extended tokenizer has new rows, which must learn."""

    def with_embeddings(self) -> "LoraConfig":
        """Return the same adapters with embedding and head trained too."""
        return self.model_copy(update={"embeddings": True})


class OptimizerConfig(Contract):
    """Configures AdamW; weight decay is not applied to norms and biases."""

    learning_rate: float
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0


class ScheduleConfig(Contract):
    """Configures the learning rate: linear warm-up, then decay to `minimum_ratio` of the peak."""

    type: Literal["cosine", "wsd"] = "cosine"
    warmup_fraction: float = 0.01
    minimum_ratio: float = 0.1


class DistributionConfig(Contract):
    """Configures how the ranks share the model."""

    zero_stage: ZeroStage = 2
    offload: Offload = "none"
    gradient_checkpointing: bool = False
    precision: Precision = "bf16"
    sequence_parallel: int = Field(default=1, ge=1, le=MAX_SEQUENCE_RANKS)
    """Consecutive ranks that share one sequence, each with an equal part of its tokens. It divides the ranks, the
    model's key-value heads and the sequence length."""


class TrainingConfig(Contract):
    """Configures what every stage that trains must know; each adds the length of its training and its loss."""

    model: ModelReference
    """The model that the training starts from."""
    recorded: RecordedDigests = RecordedDigests()
    """What was recorded of that model."""
    lora: LoraConfig | None = None
    """None: all weights are trained."""
    sequence_length_tokens: int
    global_batch_size: int
    """Sequences, packed rows or pairs of one optimizer step over all ranks."""
    micro_batch_size: int
    """As many of one forward pass on one rank; accumulation = global / (micro x world size), exactly."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    distribution: DistributionConfig
    seed: int = 0

    def with_distribution(self, distribution: DistributionConfig) -> Self:
        """Return the same training with the model shared in another way."""
        return self.model_copy(update={"distribution": distribution})


class TaskConfig(Contract):
    """Names one multiple-choice task: a task that the harness ships, or a custom one from `tasks/NAME.jsonl`."""

    name: str = Field(max_length=40)
    side: Side
    source: str | None = None
    """URI that prepare reads a custom task from; None for a task that the harness ships."""
    few_shot: int = 0


class ProbeConfig(Contract):
    """Names one set of probes, from `probes/NAME.jsonl`."""

    name: str = Field(max_length=40)
    side: Side
    source: str


def probe_name(side: Side, index: int) -> str:
    """Return the name of a side's probe set, by its place in the spec."""
    return f"probes-{side}-{index}"


class EvaluationConfig(Contract):
    """Lists what is measured on a model; it is the same for every model of an adaptation."""

    tasks: tuple[TaskConfig, ...] = ()
    probes: tuple[ProbeConfig, ...] = ()
    limit: int | None = None
    """Largest number of items a task; None: all."""
    context_length_tokens: int
    """Longest context a held-out token is scored with."""
    seed: int = 0
