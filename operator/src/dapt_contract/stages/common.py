"""Parts that the configurations of several stages share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dapt_contract.base import Contract
from dapt_contract.layout import MODEL
from dapt_contract.measure import Side


class Member(Contract):
    """One model of an average: full weights, and LoRA adapters merged into them in this order."""

    weights: str
    """Folder with safetensors, config and tokenizer, relative to the work volume."""
    adapters: tuple[str, ...] = ()
    """PEFT adapter folders, relative to the work volume."""


class ModelReference(Contract):
    """A model on the work volume, as a recipe that every stage follows alike.

    In this order: merge `adapters` into `weights`; take the mean with the models of `averaged_with`; go the share
    `interpolation` of the way from `origin` to that: origin + a (model - origin); merge `tuned`.
    """

    weights: str
    """Folder with safetensors, config and tokenizer, relative to the work volume."""
    adapters: tuple[str, ...] = ()
    """PEFT adapter folders, relative to the work volume."""
    averaged_with: tuple[Member, ...] = Field(default=(), max_length=50)
    """Further models of a mean of equal shares; none: no mean is taken."""
    interpolation: float = Field(default=1.0, ge=0.0, le=1.0)
    """a: 1 is the model itself, 0 the origin."""
    origin: str = MODEL
    """Folder of the weights that the interpolation starts from: the base model, extended where the tokenizer grew."""
    tuned: tuple[str, ...] = ()
    """PEFT adapter folders of the stages after selection (SFT, DPO), merged last."""

    @property
    def is_plain(self) -> bool:
        """Whether it is a folder of full weights and nothing else."""
        return not (self.adapters or self.averaged_with or self.tuned or self.interpolation != 1.0)


class LoraConfig(Contract):
    """Low-rank adapters (Hu et al. 2021) on all linear layers but the head."""

    rank: int = 64
    alpha: float = 128
    dropout: float = 0.0
    targets: str = "all-linear"
    embeddings: bool = False
    """Embedding and head are trained too: the tokenizer grew, and new rows must learn."""


class OptimizerConfig(Contract):
    """AdamW; weight decay is not applied to norms and biases."""

    learning_rate: float
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0


class ScheduleConfig(Contract):
    """Linear warm-up, then decay to `minimum_ratio` of the peak."""

    type: Literal["cosine", "wsd"] = "cosine"
    warmup_fraction: float = 0.01
    minimum_ratio: float = 0.1


class DistributionConfig(Contract):
    """How the ranks share the model."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in CPU memory between uses: nothing, the optimizer's state, or the weights too (ZeRO 3)."""
    gradient_checkpointing: bool = False
    precision: Literal["bf16", "fp32"] = "bf16"


class TaskConfig(Contract):
    """One multiple-choice task: the harness' own by name, or a custom one from `tasks/NAME.jsonl`."""

    name: str = Field(max_length=40)
    side: Side
    source: str | None = None
    """Where prepare reads a custom task from; None for a task that the harness ships."""
    few_shot: int = 0


class ProbeConfig(Contract):
    """One set of probes, from `probes/NAME.jsonl`."""

    name: str = Field(max_length=40)
    side: Side
    source: str


class EvaluationConfig(Contract):
    """What is measured on a model, the same for every model of an adaptation."""

    tasks: tuple[TaskConfig, ...] = ()
    probes: tuple[ProbeConfig, ...] = ()
    limit: int | None = None
    """Items a task; None: all."""
    context_length_tokens: int
    """Longest context a held-out token is scored with."""
    seed: int = 0
