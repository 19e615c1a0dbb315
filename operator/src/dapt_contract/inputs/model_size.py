"""Sizes that follow from a model's shape: trained parameters and the bytes of checkpoints.

The planner estimates with these functions and the trainer checks the free space with them, so that the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dapt_contract.stages.common import KEPT_OPTIMIZER_STATES, LoraConfig, Precision
from dapt_contract.stages.prepare import ModelFacts

WEIGHT_BYTES: Final[dict[Precision, int]] = {"bf16": 2, "fp32": 4}
"""Bytes of one weight, in memory and on disk. DeepSpeed casts adapters to the model's precision too."""
OPTIMIZER_BYTES: Final = 12
"""Bytes of optimizer state for one trained parameter: fp32 master weight and AdamW's two moments."""


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes of one checkpoint on the work volume."""

    weights_bytes: int
    optimizer_bytes: int
    """Kept for the newest checkpoints alone."""

    def total_bytes(self, checkpoints: int) -> int:
        """Return the bytes of that many checkpoints of one attempt, when the newest keep their optimizer state."""
        with_optimizer = min(KEPT_OPTIMIZER_STATES, checkpoints)
        return checkpoints * self.weights_bytes + with_optimizer * self.optimizer_bytes


def trainable_parameters(model: ModelFacts, lora: LoraConfig | None) -> int:
    """Return the number of parameters that a training changes.

    Without adapters: all. With adapters: rank x (inputs + outputs) of every linear layer but the head (Hu et al. 2021),
    and the rows of a grown tokenizer where `lora.embeddings` says that they are trained.
    """
    if lora is None:
        return model.parameters
    grown_rows = (model.added_tokens or 0) * model.embedding_matrices if lora.embeddings else 0
    return lora.rank * _linear_dimensions(model) + grown_rows * model.hidden_size


def checkpoint_size(model: ModelFacts, lora: LoraConfig | None, precision: Precision) -> CheckpointSize:
    """Return the size of one checkpoint: what is trained is what is saved, an adapter or the whole model."""
    trained = trainable_parameters(model, lora)
    return CheckpointSize(WEIGHT_BYTES[precision] * trained, OPTIMIZER_BYTES * trained)


def _linear_dimensions(model: ModelFacts) -> int:
    """Return inputs plus outputs, summed over all linear layers but the head."""
    if model.linear_dimensions is not None:
        return model.linear_dimensions
    # Facts of a prepare that did not report the sum: a decoder layer of the usual shape.
    hidden = model.hidden_size
    attention = 2 * (hidden + model.query_width) + 2 * (hidden + model.key_width)
    mlp = model.mlp_matrices * (hidden + model.intermediate_size)
    return model.layers * (attention + mlp)
