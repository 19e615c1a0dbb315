"""Memory of one accelerator in training, by parts.

Model states follow ZeRO (Rajbhandari et al. 2020, section 3): bf16 weights and gradients, fp32 master weights and two
Adam moments; stage 1 divides optimizer state and master weights over the ranks, stage 2 gradients too. Activations
count what a decoder layer keeps for its backward pass with fused attention (after Korthikanti et al. 2022, section 4,
with a gated MLP): a token and layer keeps the inputs of its linear layers and norms. Checkpointing keeps the layers'
inputs and one whole layer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import ModelFacts

GIB = 2**30
OVERHEAD_BYTES = {"gpu": 2 * GIB, "cpu": GIB}
"""CUDA context, communication buffers and fragmentation; on CPU interpreter and libraries of one process."""
LOGIT_BYTES = 12
"""A logit, its fp32 copy and the gradient."""


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    master_weights: float
    activations: float
    logits: float
    overhead: float

    @property
    def total(self) -> float:
        """Their sum."""
        return float(
            self.weights
            + self.gradients
            + self.optimizer
            + self.master_weights
            + self.activations
            + self.logits
            + self.overhead
        )

    def text(self) -> str:
        """`weights 14.9 GiB, gradients ...`, largest first, parts below 0.05 GiB left out."""
        parts = sorted(asdict(self).items(), key=lambda item: -item[1])
        return ", ".join(
            f"{name.replace('_', ' ')} {value / GIB:.1f} GiB" for name, value in parts if value >= 0.05 * GIB
        )


def trainable_parameters(model: ModelFacts, lora: LoraConfig | None) -> int:
    """All parameters, or those of the adapters: rank x (in + out) of every linear layer but the head."""
    if lora is None:
        return model.parameters
    rows = (model.added_tokens or 0) * (1 if model.tied_embeddings else 2) if lora.embeddings else 0
    hidden, inner = model.hidden_size, model.intermediate_size
    keys = hidden * model.key_value_heads // max(1, model.attention_heads)
    attention = 2 * (hidden + hidden) + 2 * (hidden + keys)
    mlp = 3 * (hidden + inner)
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
) -> MemoryParts:
    """Parts of one rank's memory, in bytes.

    Args:
        model: sizes of the base model.
        lora: the adapters; None when all weights are trained.
        kind: `gpu` or `cpu`, for the overhead.
        world_size: ranks that share what ZeRO divides.
        zero_stage: 0, 1 or 2.
        precision: `bf16` or `fp32`.
        micro_batch_size: sequences of one forward pass.
        sequence_length_tokens: of one sequence.
        gradient_checkpointing: whether activations are recomputed.
    """
    element = 2 if precision == "bf16" else 4
    trained = trainable_parameters(model, lora)
    frozen = model.parameters if lora is not None else 0
    state_share = world_size if zero_stage >= 1 else 1
    gradient_share = world_size if zero_stage >= 2 else 1
    needs_master = precision == "bf16" or zero_stage >= 1
    tokens = micro_batch_size * sequence_length_tokens
    keys = model.hidden_size * model.key_value_heads // max(1, model.attention_heads)
    layer = element * (6 * model.hidden_size + 2 * keys + 4 * model.intermediate_size) + 8 * model.hidden_size
    kept = (
        element * model.hidden_size * model.layers + layer if gradient_checkpointing else layer * model.layers
    )
    return MemoryParts(
        weights=element * (frozen + trained),
        gradients=element * trained / gradient_share,
        optimizer=8 * trained / state_share,
        master_weights=4 * trained / state_share if needs_master else 0.0,
        activations=tokens * kept,
        logits=tokens * model.vocabulary_size * LOGIT_BYTES,
        overhead=OVERHEAD_BYTES[kind],
    )
