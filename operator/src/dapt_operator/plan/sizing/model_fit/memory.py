"""Memory of one accelerator in training, by parts.

Model states follow ZeRO (Rajbhandari et al. 2020, section 3): bf16 weights, fp32 master weights and two Adam moments,
and gradients, which are summed in fp32 from stage 1 on; stage 1 divides optimizer state and master weights over the
ranks, stage 2 gradients too, stage 3 weights too. Offloading keeps them in the memory of the node instead (Ren et al.
2021, "ZeRO-Offload").

Activations count what a decoder layer keeps for its backward pass with fused attention (after Korthikanti et al. 2022,
section 4): a token and layer keeps the inputs of its linear layers and norms, queries, keys, values and what attention
gives. Checkpointing keeps the layers' inputs and one whole layer. Ranks that share a sequence keep their share of its
tokens (Jacobs et al. 2023, "DeepSpeed Ulysses").
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Final, Literal

from dapt_contract.chunked_loss import CHUNKED_LOSS_ARCHITECTURES, loss_bytes
from dapt_contract.inputs.model_size import WEIGHT_BYTES, trainable_parameters
from dapt_contract.stages.common import LIVE_PARAMETERS, LoraConfig, Offload, Precision, ZeroStage
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.spec_training import Regularization

AcceleratorKind = Literal["gpu", "cpu"]

GIB: Final = 2**30
OVERHEAD_BYTES: Final[dict[AcceleratorKind, int]] = {"gpu": 2 * GIB, "cpu": GIB}
"""On a GPU about 1 GiB each for CUDA's context with its libraries' workspaces, and for the buffers of NCCL and of
DeepSpeed's buckets. On a CPU interpreter and libraries of one process, 0.63 GiB as measured, and up to twice the 200 MB
of a bucket, which stage 3 copies to reduce it. `bench/peaks.py` compares the rest with what ranks take."""
FREE_FRACTION: Final = 0.08
"""Share of an accelerator's memory that a plan leaves free: for what its allocator cannot use between blocks, and for
the error of the estimate, which tests hold within 10 % of its tensors. A GPU sold with 80 GB has 79.6 GiB."""
HOST_PROCESS_BYTES: Final = GIB
"""Memory of its node that a rank on a GPU takes for itself: 0.5 GiB of its own pages were measured for interpreter and
libraries, and as much is assumed for CUDA's context and pinned pages. Pages of files are shared, and given back."""
LARGEST_FILE_BYTES: Final = 4 * GIB
"""Weights of which a rank holds one file at a time in its node's memory while it loads or saves."""
ASSUMED_ARCHITECTURE: Final = "assumed"
"""Architecture of a model of which the number of parameters alone is known."""
LOGIT_BYTES: Final = 12
"""A logit, its fp32 copy, the logarithm of its probability and the gradient, as far as they exist at a time."""


@dataclass(frozen=True)
class TrainingShape:
    """What the memory of one rank depends on: the model, what of it is trained, and how the ranks share it."""

    model: ModelFacts
    """With the rows of a grown tokenizer."""
    lora: LoraConfig | None
    """The adapters; None when all weights are trained."""
    kind: AcceleratorKind
    """For the overhead; offloading frees nothing on a CPU."""
    world_size: int
    """Ranks that share what ZeRO divides."""
    zero_stage: ZeroStage
    precision: Precision
    micro_batch_size: int
    """Sequences of one forward pass."""
    sequence_length_tokens: int
    gradient_checkpointing: bool
    """Whether activations are recomputed."""
    offload: Offload = "none"
    regularization: Regularization | None = None
    sequence_parallel: int = 1
    """Ranks that share each sequence."""
    chunked_loss: bool = False
    """Whether the logits of a whole micro-batch never exist."""

    @property
    def tokens(self) -> float:
        """Tokens of one forward pass whose activations this rank keeps."""
        return self.micro_batch_size * self.sequence_length_tokens / self.sequence_parallel

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight, gradient or activation."""
        return WEIGHT_BYTES[self.precision]

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one gradient where micro-batches are summed. Without ZeRO DeepSpeed sums them as it gets them."""
        return self.weight_bytes if self.zero_stage == 0 else WEIGHT_BYTES["fp32"]

    @property
    def trained(self) -> int:
        """Trained parameters."""
        return trainable_parameters(self.model, self.lora)

    @property
    def optimizer_shards(self) -> int:
        """Ranks over which optimizer state and master weights are divided."""
        return self.world_size if self.zero_stage >= 1 else 1

    @property
    def gradient_shards(self) -> int:
        """Ranks over which gradients are divided."""
        return self.world_size if self.zero_stage >= 2 else 1


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on one rank's accelerator. The names are what messages call the parts."""

    weights: float
    gradients: float
    optimizer: float
    master_weights: float
    activations: float
    logits: float
    overhead: float
    update: float = 0.0
    """fp32 gradients of the optimizer's step, as far as they are more than the activations and logits, which are gone
    by then."""
    penalty: float = 0.0
    """What a penalty against forgetting holds (`penalty_bytes`)."""

    @property
    def total(self) -> float:
        """Their sum."""
        return float(sum(getattr(self, part.name) for part in fields(self)))

    def text(self) -> str:
        """Return `weights 14.9 GiB, gradients ...`, largest first, without parts below 0.05 GiB."""
        parts = sorted(asdict(self).items(), key=lambda item: -item[1])
        return ", ".join(
            f"{name.replace('_', ' ')} {value / GIB:.1f} GiB" for name, value in parts if value >= 0.05 * GIB
        )


def training_memory(shape: TrainingShape) -> MemoryParts:
    """Return the parts of one rank's memory."""
    offload = shape.offload if shape.kind == "gpu" else "none"
    is_on_card = offload == "none"
    activations = shape.tokens * _activation_bytes_per_token(shape)
    logits = _logits_bytes(shape)
    # DeepSpeed keeps master weights in fp32 too, as soon as it partitions them.
    has_master_weights = is_on_card and (shape.precision == "bf16" or shape.zero_stage >= 1)
    # The bf16 optimizer's step takes an fp32 copy of its gradients, but at stage 1, where they lie as it needs them. By
    # then activations and logits are freed, so only the larger of the two counts.
    has_fp32_gradients = is_on_card and shape.precision == "bf16" and shape.zero_stage != 1
    fp32_gradients = 4 * shape.trained / shape.optimizer_shards if has_fp32_gradients else 0.0
    # From stage 2 on offloaded gradients leave the card bucket by bucket, as the backward pass makes them.
    keeps_gradients = is_on_card or shape.zero_stage < 2
    return MemoryParts(
        weights=shape.weight_bytes * _resident_weights(shape, offload),
        gradients=shape.gradient_bytes * shape.trained / shape.gradient_shards if keeps_gradients else 0.0,
        optimizer=8 * shape.trained / shape.optimizer_shards if is_on_card else 0.0,
        master_weights=4 * shape.trained / shape.optimizer_shards if has_master_weights else 0.0,
        activations=activations,
        logits=logits,
        overhead=OVERHEAD_BYTES[shape.kind],
        update=max(0.0, fp32_gradients - activations - logits),
        penalty=penalty_bytes(shape),
    )


def usable_bytes(memory_gib: float) -> float:
    """Return the bytes of an accelerator that a plan may fill."""
    return memory_gib * GIB * (1.0 - FREE_FRACTION)


def process_host_bytes(kind: AcceleratorKind, weights_bytes: float) -> float:
    """Return what one rank takes of its node's memory for itself and for loading these weights; on a CPU its whole
    memory is counted, and this is 0."""
    return 0.0 if kind == "cpu" else HOST_PROCESS_BYTES + min(weights_bytes, LARGEST_FILE_BYTES)


def host_bytes(shape: TrainingShape) -> float:
    """Return what one rank of a GPU profile keeps in its node's memory: fp32 weights, moments and gradients, and its
    weights.

    16 bytes for each trained parameter of its share (Ren et al. 2021, section 4.1), and with `all` the bytes of each of
    the model's weights.
    """
    if shape.offload == "none" or shape.kind != "gpu":
        return 0.0
    weights = shape.weight_bytes * shape.model.parameters if shape.offload == "all" else 0
    return (16 * shape.trained + weights) / shape.optimizer_shards


def penalty_bytes(shape: TrainingShape) -> float:
    """Return what a penalty against forgetting holds alongside the training.

    ewc: Fisher information and anchor of the held-back weights, of the rank's slice from stage 1 on; with LoRA the
    Fisher information of the rank's layers, in the fp32 that it is measured in. l2sp: the anchor; with LoRA nothing.
    klToBase: the base model; with LoRA nothing, since its adapters are switched off for it.
    """
    penalty = shape.regularization
    if penalty is None:
        return 0.0
    if penalty.kl_to_base is not None:
        return float(shape.weight_bytes * shape.model.parameters) if shape.lora is None else 0.0
    if shape.lora is not None:
        if penalty.ewc is None:
            return 0.0
        return 4.0 * _held_back_weights(penalty, shape.model, only_layers=True) / shape.world_size
    copies = 2 if penalty.ewc is not None else 1
    held_back = _held_back_weights(penalty, shape.model, only_layers=False)
    return copies * shape.weight_bytes * held_back / shape.optimizer_shards


def _logits_bytes(shape: TrainingShape) -> float:
    """Return what logits and their gradient take, or what the loss in chunks holds instead."""
    model = shape.model
    if not shape.chunked_loss:
        return shape.tokens * model.vocabulary_size * LOGIT_BYTES
    return float(
        loss_bytes(
            model.vocabulary_size,
            model.hidden_size,
            math.ceil(shape.tokens),
            is_head_trained=shape.lora is None or shape.lora.embeddings,
            activation_bytes=shape.weight_bytes,
        )
    )


def can_chunk_loss(model: ModelFacts) -> bool:
    """Return whether the trainer computes the loss of this model in chunks; it does of nearly all decoders."""
    return model.architecture in CHUNKED_LOSS_ARCHITECTURES or model.architecture == ASSUMED_ARCHITECTURE


def _resident_weights(shape: TrainingShape, offload: Offload) -> float:
    """Return how many parameters lie on the accelerator: all, or this rank's share and those that are gathered for
    the moment."""
    adapters = shape.trained if shape.lora is not None else 0
    parameters = shape.model.parameters + adapters
    if shape.zero_stage < 3 or (shape.world_size == 1 and offload != "all"):
        return parameters
    # One matrix is always gathered whole, and the embedding may be larger than DeepSpeed's bound.
    gathered = min(parameters, max(LIVE_PARAMETERS, shape.model.vocabulary_size * shape.model.hidden_size))
    return gathered + (0.0 if offload == "all" else parameters / shape.world_size)


def _activation_bytes_per_token(shape: TrainingShape) -> float:
    """Return the bytes that a token keeps in all layers.

    A layer: for each of two norms its fp32 input (in bf16 a copy, in fp32 the residual stream itself), the normalized
    values (where the norm's weight is trained) and its output; queries, keys, values, attention's output; of the MLP
    each matrix' output and, gated, activation and product. An adapter keeps its inner values as well.
    """
    model, element, lora = shape.model, shape.weight_bytes, shape.lora
    hidden = model.hidden_size
    norm = 4 * hidden + element * hidden + (element * hidden if lora is None else 0)
    attention = element * (2 * model.query_width + 2 * model.key_width)
    mlp = element * (4 if model.gated_mlp else 2) * model.intermediate_size
    adapted_matrices = 4 + model.mlp_matrices
    adapters = element * lora.rank * adapted_matrices if lora is not None else 0
    layer = 2 * norm + attention + mlp + adapters
    if shape.gradient_checkpointing:
        return element * hidden * model.layers + layer
    return layer * model.layers


def _held_back_weights(penalty: Regularization, model: ModelFacts, *, only_layers: bool) -> float:
    """Return the number of weights in the penalty's group, without biases and norms but in `all`."""
    group = penalty.ewc.parameters if penalty.ewc is not None else "all"
    attention = 2 * model.hidden_size * (model.query_width + model.key_width)
    mlp = model.mlp_matrices * model.hidden_size * model.intermediate_size
    if group == "attention":
        return float(model.layers * attention)
    if group == "mlp":
        return float(model.layers * mlp)
    return float(model.layers * (attention + mlp)) if only_layers else float(model.parameters)
