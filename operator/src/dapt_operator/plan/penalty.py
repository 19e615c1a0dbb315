"""Memory that a penalty against forgetting takes of one rank's accelerator (docs/training.md has the penalties)."""

from __future__ import annotations

from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.spec import Regularization


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
