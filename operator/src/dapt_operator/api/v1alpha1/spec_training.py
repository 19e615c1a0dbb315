"""Defines `spec.pretraining`, `spec.finetuning` and `spec.preference`: how the model is trained."""

from typing import Annotated, Literal

from pydantic import Field

from dapt_contract.base import MAX_CHECKPOINTS, MAX_SEQUENCE_RANKS
from dapt_operator.api.v1alpha1.base import Base, Integer, Rule, count_set, exactly_one
from dapt_operator.api.v1alpha1.spec_corpus import BadRecords
from dapt_operator.api.v1alpha1.spec_tuning_data import InstructionFields, PreferenceFields
from dapt_operator.api.v1alpha1.texts.addresses import SourceUri


class Full(Base):
    """Every weight is trained."""


class Lora(Base):
    """Low-rank adapters are trained and merged at the end: less memory, about the same compute; learns less,
    forgets less."""

    rank: Annotated[Integer, Field(ge=1, le=4096)] = 64
    """Rank of the adapters. Default 64: continued pre-training needs more capacity than fine-tuning's usual
    8 to 16."""
    alpha: Annotated[Integer, Field(ge=1, le=65_536)] | None = None
    """Scale of the adapters; the update is multiplied by alpha / rank. Absent: twice the rank, so that a
    change of rank keeps the scale (128 at rank 64)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input. Default 0: a single pass over a corpus does not overfit."""
    targets: Literal["all-linear"] = "all-linear"
    """Layers that get an adapter. Default all-linear: adapters on attention alone learn a domain markedly
    worse."""

    @property
    def effective_alpha(self) -> int:
        """`alpha`, or twice the rank when it is absent."""
        return self.alpha if self.alpha is not None else 2 * self.rank


class Method(Base):
    """Which weights are trained: exactly one of full and lora."""

    RULES = (
        Rule(
            "",
            lambda method: count_set(method, "full", "lora") == 1,
            exactly_one("full", "lora"),
            "exactly one of full and lora must be given: keep one of them",
        ),
    )

    full: Full | None = None
    """Train every weight."""
    lora: Lora | None = None
    """Train low-rank adapters."""


class TuningLora(Lora):
    """Low-rank adapters of a tuning stage; their rank is smaller than that of pretraining."""

    rank: Annotated[Integer, Field(ge=1, le=4096)] = 16
    """Rank of the adapters. Default 16: instructions and preferences need little capacity and should move little."""
    alpha: Annotated[Integer, Field(ge=1, le=65_536)] | None = None
    """Scale of the adapters; the update is multiplied by alpha / rank. Absent: twice the rank, so that a
    change of rank keeps the scale (32 at rank 16)."""


class TuningMethod(Method):
    """Which weights a tuning stage trains: exactly one of full and lora."""

    lora: TuningLora | None = None
    """Train low-rank adapters."""


class Budget(Base):
    """How long pretraining lasts: exactly one of epochs, tokens and steps."""

    RULES = (
        Rule(
            "",
            lambda budget: count_set(budget, "epochs", "tokens", "steps") == 1,
            exactly_one("epochs", "tokens", "steps"),
            "exactly one of epochs, tokens and steps must be given, since each alone is the whole budget:"
            " keep one of them",
        ),
    )

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the domain tokens; total tokens = domain tokens x epochs / (1 - replayFraction)."""
    tokens: Annotated[Integer, Field(ge=1, le=100_000_000_000_000)] | None = None
    """Training tokens in all, replay included."""
    steps: Annotated[Integer, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps in all."""


class Optimizer(Base):
    """Settings of the AdamW optimizer."""

    RULES = (
        Rule(
            "betas",
            lambda optimizer: optimizer.betas[0] <= optimizer.betas[1],
            "self.betas[0] <= self.betas[1]",
            "the first beta (mean of gradients) must not be above the second (mean of their squares):"
            " write them as [0.9, 0.95]",
        ),
    )

    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Absent: 2e-5 for full training, 1e-4 for LoRA."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Decoupled weight decay, not applied to norms and biases. Default 0.1: what the base models were
    trained with."""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(strict=False, min_length=2, max_length=2)
    ] = (0.9, 0.95)
    """Decay of the running means of gradients and of their squares. Default [0.9, 0.95]: the second is
    shorter than Adam's 0.999, so that it follows the changed distribution."""
    gradient_clip: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Largest norm of the gradient; above it the gradient is scaled down. Default 1.0: one bad batch cannot
    undo the model."""


class PreferenceOptimizer(Optimizer):
    """Settings of the AdamW optimizer in preference tuning, whose rates are smaller."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Absent: 5e-7 for full training, 5e-6 for LoRA."""


class Schedule(Base):
    """The learning rate over the run."""

    type: Literal["cosine", "wsd"] = "cosine"
    """cosine: warm-up, then half a cosine down; wsd: warm-up, constant, then a decay at the end. Default
    cosine: the best studied for continued pre-training."""
    warmup_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.01
    """Share of the steps in which the rate rises from 0 to its peak. Default 0.01: 0 to 0.02 makes no
    difference (Gupta 2023)."""
    minimum_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Rate at the end, as a share of the peak. Default 0.1: a run that decays to 0 is harder to continue."""


class Ewc(Base):
    """Elastic weight consolidation: weights that general text depends on (by Fisher information) are held
    back."""

    strength: Annotated[float, Field(gt=0, le=1_000_000)] = 0.1
    """Weight of the penalty, half of it times the weighted squared distance; the Fisher information is scaled to
    mean 1, so it does not depend on text length. Default 0.1."""
    samples: Annotated[Integer, Field(ge=1, le=1_000_000)] = 2000
    """General sequences from which the Fisher information is estimated. Default 2000: 1,000 to 5,000 are usual."""
    parameters: Literal["all", "attention", "mlp"] = "attention"
    """Group of weights that is held back. Default attention: it needs a third of the memory of all."""


class L2sp(Base):
    """A pull towards the base model's weights."""

    strength: Annotated[float, Field(gt=0, le=1_000_000)] = 0.01
    """Weight of the penalty, half of it times the squared distance to the base weights. Default 0.01."""


class KlToBase(Base):
    """A pull towards the base model's predictions on general text."""

    strength: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """Weight of the divergence from the base model's predictions, measured on one general sequence for every eight
    of the batch, which costs a sixth more compute. Default 0.1."""


class Regularization(Base):
    """A penalty against forgetting: exactly one of ewc, l2sp and klToBase."""

    RULES = (
        Rule(
            "",
            lambda regularization: count_set(regularization, "ewc", "l2sp", "kl_to_base") == 1,
            exactly_one("ewc", "l2sp", "klToBase"),
            "exactly one of ewc, l2sp and klToBase must be given: keep one of them, or remove regularization",
        ),
    )

    ewc: Ewc | None = None
    """Elastic weight consolidation."""
    l2sp: L2sp | None = None
    """A pull towards the base model's weights."""
    kl_to_base: KlToBase | None = None
    """A pull towards the base model's predictions on general text."""


class Distribution(Base):
    """How the work is split over ranks. Each field absent: chosen by the estimate and recorded in
    status.resolved."""

    RULES = (
        Rule(
            "offload",
            lambda distribution: distribution.offload != "optimizer" or distribution.zero_stage != 0,
            "!has(self.offload) || self.offload != 'optimizer' || !has(self.zeroStage) || self.zeroStage != 0",
            "offload optimizer needs zeroStage 1, 2 or 3: ZeRO moves the optimizer's state; leave zeroStage out",
        ),
        Rule(
            "offload",
            lambda distribution: distribution.offload != "all" or distribution.zero_stage in (None, 3),
            "!has(self.offload) || self.offload != 'all' || !has(self.zeroStage) || self.zeroStage == 3",
            "offload all needs zeroStage 3, which fetches weights as they are used: write 3, or leave zeroStage out",
        ),
    )

    zero_stage: Annotated[Integer, Field(ge=0, le=3)] | None = None
    """ZeRO stage: what is split over ranks (0 nothing, 1 optimizer state, 2 gradients too, 3 weights too).
    Absent: what sends least in a step and fits by the estimate: 1 where several micro-batches make the step, since
    2 and 3 send for each of them, else 2, else 3 (Rajbhandari et al. 2020). In bf16 0 runs as 1."""
    offload: Literal["none", "optimizer", "all"] | None = None
    """What is kept in CPU memory between uses: nothing, the optimizer's state (zeroStage 1 to 3), or the
    weights too (zeroStage 3). Absent: none, unless nothing fits without it and resources.memory is large enough."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: a third more compute, much less memory. Absent: when the
    estimate asks for it."""
    precision: Literal["bf16", "fp32"] | None = None
    """Number format of forward and backward. Absent: bf16 with fp32 master weights on GPUs, fp32 on CPUs."""
    sequence_parallel: Annotated[Integer, Field(ge=1, le=MAX_SEQUENCE_RANKS)] | None = None
    """Consecutive ranks that share one sequence, each with an equal part of its tokens: less memory for long contexts,
    more traffic. It divides the number of GPUs, the model's key-value heads and corpus.sequenceLength. Absent: chosen
    by the estimate, 1 where a sequence fits on one GPU."""


class Checkpoints(Base):
    """When the model is saved and measured."""

    count: Annotated[Integer, Field(ge=1, le=MAX_CHECKPOINTS)] = 10
    """Checkpoints of an attempt, evenly over the budget. Default 10: enough to choose from, and few enough to
    evaluate."""
    keep: Literal["all"] = "all"
    """Which checkpoints keep their weights (optimizer state is kept for the newest two). Default all: selection
    needs them."""


class Pretraining(Base):
    """Continued pre-training on the mixture of domain and general text."""

    RULES = (
        Rule(
            "regularization",
            lambda pretraining: (
                pretraining.regularization is None
                or (
                    pretraining.distribution.zero_stage != 3
                    and pretraining.distribution.offload in (None, "none")
                )
            ),
            "!has(self.regularization) || ((!has(self.distribution.zeroStage) || self.distribution.zeroStage != 3)"
            " && (!has(self.distribution.offload) || self.distribution.offload == 'none'))",
            "regularization keeps its anchor with each rank's optimizer state and needs zeroStage 0, 1 or 2 without"
            " offload: set distribution.zeroStage to 2 and distribution.offload to none, or remove regularization",
        ),
        Rule(
            "regularization",
            lambda pretraining: (
                pretraining.regularization is None or pretraining.distribution.sequence_parallel in (None, 1)
            ),
            "!has(self.regularization) || !has(self.distribution.sequenceParallel)"
            " || self.distribution.sequenceParallel == 1",
            "regularization works on whole sequences and needs sequenceParallel 1: leave distribution.sequenceParallel"
            " out, or remove regularization",
        ),
    )

    method: Method = Method(full=Full())
    """Which weights are trained. Default full: it learns a domain best where memory allows it."""
    budget: Budget = Budget(epochs=1)
    """How long training lasts. Default one pass over the domain tokens."""
    global_batch_size: Annotated[Integer, Field(ge=1, le=1_000_000)] | None = None
    """Sequences per optimizer step, over all ranks. Absent: 64, a quarter of a million tokens at 4096 a sequence, and
    for small data as many fewer that training has about 100 steps, unless the budget is in steps; always a multiple of
    what the ranks share."""
    micro_batch_size: Annotated[Integer, Field(ge=1, le=65_536)] | None = None
    """Sequences per rank in one forward pass. Absent: the largest that fits by the estimate."""
    optimizer: Optimizer = Optimizer()
    """Settings of the AdamW optimizer."""
    schedule: Schedule = Schedule()
    """The learning rate over the run."""
    regularization: Regularization | None = None
    """A penalty against forgetting. Absent: none."""
    distribution: Distribution = Distribution()
    """How the work is split over ranks."""
    checkpoints: Checkpoints = Checkpoints()
    """When the model is saved and measured."""


class FinetuningSource(Base):
    """One set of instruction data."""

    source: SourceUri
    """JSONL (also .gz and .zst), JSON arrays or Parquet files, with wildcards."""
    format: Literal["messages", "promptResponse", "plain"] = "messages"
    """messages and promptResponse: a chat, which is recognized by its fields: a list of messages, or prompt and
    response; plain: prompt and response as plain text, the response right after the prompt, without a chat
    template. Default messages: what chat models are trained on."""
    fields: InstructionFields | None = None
    """Which of a record's own fields hold what. Absent: the usual names are recognized; docs/finetuning.md lists
    them."""


class FinetuningBudget(Base):
    """How long fine-tuning lasts: exactly one of epochs and steps."""

    RULES = (
        Rule(
            "",
            lambda budget: count_set(budget, "epochs", "steps") == 1,
            exactly_one("epochs", "steps"),
            "exactly one of epochs and steps must be given, since each alone is the whole budget:"
            " keep one of them",
        ),
    )

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the data; a pass reads every packed sequence once, and so every conversation once."""
    steps: Annotated[Integer, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps in all."""


class Finetuning(Base):
    """Supervised fine-tuning after selection; the loss counts response tokens alone."""

    data: Annotated[tuple[FinetuningSource, ...], Field(strict=False, min_length=1, max_length=64)]
    """Instruction data."""
    bad_records: BadRecords = BadRecords()
    """What happens to records that cannot be read or learned from."""
    method: TuningMethod = TuningMethod(lora=TuningLora())
    """Which weights are trained. Default LoRA of rank 16 (alpha 32): instructions need little capacity and
    should move little."""
    budget: FinetuningBudget = FinetuningBudget(epochs=2)
    """How long training lasts. Default two epochs: more starts to memorize small data."""
    sequence_length: Annotated[Integer, Field(ge=8, le=1_048_576)] | None = None
    """Tokens per sequence; conversations are packed whole into sequences, longer ones are cut. Absent: the
    corpus' sequenceLength."""
    global_batch_size: Annotated[Integer, Field(ge=1, le=1_000_000)] | None = None
    """Packed sequences per optimizer step, over all ranks. Absent: that of pretraining (64 where it has none), and for
    small data as many fewer that training has about 100 steps, with the conversations spread over enough sequences."""
    micro_batch_size: Annotated[Integer, Field(ge=1, le=65_536)] | None = None
    """Sequences per rank in one forward pass. Absent: the largest that fits by the estimate."""
    optimizer: Optimizer = Optimizer()
    """Settings of the AdamW optimizer. Absent learning rate: 2e-5 for full training, 1e-4 for LoRA."""
    schedule: Schedule = Schedule()
    """The learning rate over the run."""


class PreferenceSource(Base):
    """One set of preference data."""

    source: SourceUri
    """JSONL (also .gz and .zst), JSON arrays or Parquet files, with wildcards."""
    fields: PreferenceFields | None = None
    """Which of a record's own fields hold what. Absent: the usual names are recognized, such as prompt, chosen and
    rejected; docs/finetuning.md lists them."""


class Preference(Base):
    """Direct preference optimization after fine-tuning."""

    data: Annotated[tuple[PreferenceSource, ...], Field(strict=False, min_length=1, max_length=64)]
    """Preference data."""
    bad_records: BadRecords = BadRecords()
    """What happens to records that cannot be read or learned from."""
    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """How strongly the model is held to the fine-tuned one. Default 0.1: the value of the DPO paper."""
    method: TuningMethod = TuningMethod(lora=TuningLora())
    """Which weights are trained. Default LoRA of rank 16: preferences should move little. The reference's
    likelihoods are computed before the first step, so that neither holds a second copy of the weights."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Passes over the pairs. Default 1: more soon lowers the likelihood of both answers."""
    global_batch_size: Annotated[Integer, Field(ge=1, le=1_000_000)] | None = None
    """Pairs per optimizer step, over all ranks. Absent: that of pretraining (64 where it has none), and for small data
    as many fewer that training has about 100 steps."""
    micro_batch_size: Annotated[Integer, Field(ge=1, le=65_536)] | None = None
    """Pairs per rank in one forward pass. Absent: the largest that fits by the estimate."""
    optimizer: PreferenceOptimizer = PreferenceOptimizer()
    """Settings of the AdamW optimizer. Absent learning rate: 5e-7 for full training, 5e-6 for LoRA."""
    schedule: Schedule = Schedule(warmup_fraction=0.1)
    """The learning rate over the run. Default with a warm-up of a tenth, since preference data is small and its
    runs are short."""
