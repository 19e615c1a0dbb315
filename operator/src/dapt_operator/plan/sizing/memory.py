"""Memory of one accelerator in training, by parts.

Model states follow ZeRO (Rajbhandari et al. 2020, section 3): bf16 weights and gradients, fp32 master weights and two
Adam moments; stage 1 divides optimizer state and master weights over the ranks, stage 2 gradients too, stage 3 weights
too. Offloading keeps them in the memory of the node instead (Ren et al. 2021, "ZeRO-Offload").

Activations count what a decoder layer keeps for its backward pass with fused attention (after Korthikanti et al. 2022,
section 4): a token and layer keeps the inputs of its linear layers and norms, queries, keys, values and what attention
gives. Checkpointing keeps the layers' inputs and one whole layer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.spec_training import Regularization

GIB = 2**30
OVERHEAD_BYTES = {"gpu": 2 * GIB, "cpu": GIB}
"""CUDA context, communication buffers and fragmentation; on CPU interpreter and libraries of one process."""
LOGIT_BYTES = 12
"""A logit, its fp32 copy, the logarithm of its probability and the gradient, as far as they exist at a time."""
LIVE_PARAMETERS = 500_000_000
"""Weights that are whole at a time under stage 3; the trainer sets DeepSpeed's bound to it."""


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on one rank's accelerator."""

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
    """What a penalty against forgetting holds (`plan/sizing/memory.py`)."""

    @property
    def total(self) -> float:
        """Their sum."""
        return float(sum(asdict(self).values()))

    def text(self) -> str:
        """`weights 14.9 GiB, gradients ...`, largest first, parts below 0.05 GiB left out."""
        parts = sorted(asdict(self).items(), key=lambda item: -item[1])
        return ", ".join(
            f"{name.replace('_', ' ')} {value / GIB:.1f} GiB" for name, value in parts if value >= 0.05 * GIB
        )


def trainable_parameters(model: ModelFacts, lora: LoraConfig | None) -> int:
    """All parameters, or those of the adapters: rank x (in + out) of every linear layer but the head, and the rows of a
    grown tokenizer."""
    if lora is None:
        return model.parameters
    rows = (model.added_tokens or 0) * (1 if model.tied_embeddings else 2) if lora.embeddings else 0
    if model.linear_dimensions is not None:
        return lora.rank * model.linear_dimensions + rows * model.hidden_size
    hidden, inner = model.hidden_size, model.intermediate_size
    attention = 2 * (hidden + _queries(model)) + 2 * (hidden + _keys(model))
    mlp = (3 if model.gated_mlp else 2) * (hidden + inner)
    return lora.rank * model.layers * (attention + mlp) + rows * hidden


def training_memory(
    model: ModelFacts,
    lora: LoraConfig | None,
    *,
    kind: str,
    world_size: int,
    zero_stage: int,
    precision: str,
    micro_batch_size: int,
    sequence_length_tokens: int,
    gradient_checkpointing: bool,
    offload: str = "none",
    penalty: float = 0.0,
) -> MemoryParts:
    """Parts of one rank's memory, in bytes.

    Args:
        model: sizes of the base model.
        lora: the adapters; None when all weights are trained.
        kind: `gpu` or `cpu`, for the overhead; offloading frees nothing on a CPU.
        world_size: ranks that share what ZeRO divides.
        zero_stage: 0 to 3.
        precision: `bf16` or `fp32`.
        micro_batch_size: sequences of one forward pass.
        sequence_length_tokens: of one sequence.
        gradient_checkpointing: whether activations are recomputed.
        offload: `none`, `optimizer` or `all`.
        penalty: bytes that a penalty against forgetting holds.
    """
    element = 2 if precision == "bf16" else 4
    trained = trainable_parameters(model, lora)
    held = model.parameters + (trained if lora is not None else 0)
    away = offload if kind == "gpu" else "none"
    state_share = world_size if zero_stage >= 1 else 1
    gradient_share = world_size if zero_stage >= 2 else 1
    tokens = micro_batch_size * sequence_length_tokens
    activations = tokens * _kept(model, lora, element, gradient_checkpointing=gradient_checkpointing)
    logits = tokens * model.vocabulary_size * LOGIT_BYTES
    fp32_gradients = 4 * trained / state_share if precision == "bf16" and away == "none" else 0.0
    return MemoryParts(
        weights=element * _held_weights(model, held, world_size, zero_stage, away),
        gradients=0.0 if away != "none" and zero_stage >= 2 else element * trained / gradient_share,
        optimizer=0.0 if away != "none" else 8 * trained / state_share,
        master_weights=4 * trained / state_share
        if away == "none" and (precision == "bf16" or zero_stage >= 1)
        else 0.0,
        activations=activations,
        logits=logits,
        overhead=OVERHEAD_BYTES[kind],
        update=max(0.0, fp32_gradients - activations - logits),
        penalty=penalty,
    )


def host_bytes(
    model: ModelFacts,
    lora: LoraConfig | None,
    *,
    world_size: int,
    zero_stage: int,
    precision: str,
    offload: str,
) -> float:
    """What one rank of a GPU profile keeps in its node's memory: fp32 weights, moments and gradients, and its weights.

    16 bytes for each trained parameter of its share (Ren et al. 2021, section 4.1), and `element` bytes for each of
    the model's with `all`.
    """
    if offload == "none":
        return 0.0
    trained = trainable_parameters(model, lora)
    weights = (2 if precision == "bf16" else 4) * model.parameters if offload == "all" else 0
    return (16 * trained + weights) / (world_size if zero_stage >= 1 else 1)


def _held_weights(model: ModelFacts, held: int, world_size: int, zero_stage: int, away: str) -> float:
    """Parameters on the accelerator: all, or this rank's share and those that are gathered for the moment."""
    if zero_stage < 3 or (world_size == 1 and away != "all"):
        return held
    live = min(held, max(LIVE_PARAMETERS, model.vocabulary_size * model.hidden_size))
    return live + (0.0 if away == "all" else held / world_size)


def _kept(model: ModelFacts, lora: LoraConfig | None, element: int, *, gradient_checkpointing: bool) -> float:
    """Bytes that a token keeps in all layers.

    A layer: for each of two norms its fp32 input (in bf16 a copy, in fp32 the residual stream itself), the normalized
    values (where the norm's weight is trained) and its output; queries, keys, values, attention's output; of the MLP
    each matrix' output and, gated, activation and product. An adapter keeps its inner values as well.
    """
    hidden = model.hidden_size
    norm = 4 * hidden + element * hidden + (element * hidden if lora is None else 0)
    attention = element * (2 * _queries(model) + 2 * _keys(model))
    mlp = element * (4 if model.gated_mlp else 2) * model.intermediate_size
    adapters = element * lora.rank * (7 if model.gated_mlp else 6) if lora is not None else 0
    layer = 2 * norm + attention + mlp + adapters
    if gradient_checkpointing:
        return element * hidden * model.layers + layer
    return layer * model.layers


def _head_size(model: ModelFacts) -> int:
    return model.head_size or model.hidden_size // max(1, model.attention_heads)


def _queries(model: ModelFacts) -> int:
    return _head_size(model) * model.attention_heads


def _keys(model: ModelFacts) -> int:
    return _head_size(model) * model.key_value_heads


def penalty_bytes(
    asked: Regularization | None,
    model: ModelFacts,
    lora: LoraConfig | None,
    *,
    world_size: int,
    zero_stage: int,
    precision: str,
) -> float:
    """What is held beside the training, in bytes.

    ewc: Fisher information and anchor of the held-back weights, of the rank's slice from stage 1 on; with LoRA the
    Fisher information of the rank's layers, in the fp32 that it is measured in. l2sp: the anchor; with LoRA nothing.
    klToBase: the base model; with LoRA nothing, since its adapters are switched off for it.
    """
    if asked is None:
        return 0.0
    element = 2 if precision == "bf16" else 4
    if asked.kl_to_base is not None:
        return float(element * model.parameters) if lora is None else 0.0
    if lora is not None:
        return 4.0 * _held_back(asked, model, adapted=True) / world_size if asked.ewc is not None else 0.0
    numbers = 2 if asked.ewc is not None else 1
    share = world_size if zero_stage >= 1 else 1
    return numbers * element * _held_back(asked, model, adapted=False) / share


def _held_back(asked: Regularization, model: ModelFacts, *, adapted: bool) -> float:
    """Weights of the named group, without biases and norms but in `all`."""
    group = asked.ewc.parameters if asked.ewc is not None else "all"
    hidden, heads = model.hidden_size, max(1, model.attention_heads)
    head = model.head_size or hidden // heads
    attention = 2 * hidden * head * (heads + model.key_value_heads)
    mlp = (3 if model.gated_mlp else 2) * hidden * model.intermediate_size
    if group == "attention":
        return float(model.layers * attention)
    if group == "mlp":
        return float(model.layers * mlp)
    return float(model.layers * (attention + mlp)) if adapted else float(model.parameters)
