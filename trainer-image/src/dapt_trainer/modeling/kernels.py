"""Chooses Liger's fused kernels, where they are installed and save memory.

They trade time for memory: norms, rotary embedding and the gated MLP in one pass each, and a loss that never holds all
logits. With few tokens in a forward pass they gain nothing. The two thresholds below are assumptions until
`python -m bench gpu` has run on an accelerator; it prints what the kernels gain.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from dapt_contract.chunked_loss import chunk_tokens
from dapt_trainer.modeling.chunked_loss import use_chunked_loss

SMALLEST_PASS_TOKENS = 4096
"""Tokens of a forward pass from which the fused kernels are used."""
LARGE_LOGITS_BYTES = 4 * 2**30
"""Size of logits, their fp32 copy and gradients from which the fused loss is used: below, plain logits are faster."""
LOGIT_BYTES = 12


@dataclass(frozen=True)
class Kernels:
    """Holds which kernels are used, and why."""

    liger: dict[str, bool] | None
    """Liger's switches; None: transformers' own layers."""
    reason: str
    loss: str = ""
    """How the loss is computed; empty before it is known."""

    @property
    def arguments(self) -> dict[str, object]:
        """Return keywords for `TrainingArguments`."""
        if self.liger is None:
            return {}
        return {"use_liger_kernel": True, "liger_kernel_config": dict(self.liger)}

    @property
    def text(self) -> str:
        """Return the choice with its reason, for log and report."""
        loss = f"; {self.loss}" if self.loss else ""
        if self.liger is None:
            return f"transformers' own layers: {self.reason}{loss}"
        return f"Liger ({', '.join(name for name, used in self.liger.items() if used)}): {self.reason}{loss}"


def choose_kernels(
    config: PretrainedConfig,
    device: torch.device,
    *,
    tokens_per_pass: int,
    zero_stage: int,
    installed: bool | None = None,
) -> Kernels:
    """Return whether and which of Liger's kernels are used.

    Args:
        config: of the model, for its type and vocabulary.
        device: where it trains.
        tokens_per_pass: of one micro-batch.
        zero_stage: under stage 3 the head's weight is gathered by its own forward pass, which the fused loss skips.
        installed: whether liger-kernel is; None: looked up.
    """
    if device.type == "cpu":
        return Kernels(None, "no accelerator")
    if installed is None:
        installed = importlib.util.find_spec("liger_kernel") is not None
    if not installed:
        return Kernels(None, "liger-kernel is not installed")
    if not is_supported(config.model_type):
        return Kernels(None, f"liger-kernel has none for {config.model_type}")
    if tokens_per_pass < SMALLEST_PASS_TOKENS:
        return Kernels(
            None, f"{tokens_per_pass} tokens a forward pass, under {SMALLEST_PASS_TOKENS}, gain nothing"
        )
    is_large = tokens_per_pass * config.vocab_size * LOGIT_BYTES >= LARGE_LOGITS_BYTES and zero_stage < 3
    switches = {"rope": True, "rms_norm": True, "swiglu": True}
    loss = {"fused_linear_cross_entropy": is_large, "cross_entropy": False}
    return Kernels(supported_switches(config.model_type, switches | loss), f"{tokens_per_pass} tokens a pass")


def with_loss(kernels: Kernels, model: PreTrainedModel) -> Kernels:
    """Make the model compute its loss without all logits where nothing else does, and return how it is computed."""
    if kernels.liger is not None and kernels.liger.get("fused_linear_cross_entropy"):
        return dataclasses.replace(kernels, loss="loss fused with the head by Liger")
    if use_chunked_loss(model):
        return dataclasses.replace(
            kernels, loss=f"loss in chunks of {chunk_tokens(model.config.vocab_size)} tokens"
        )
    return dataclasses.replace(
        kernels, loss=f"loss over all logits: {type(model).__name__} has none in chunks"
    )


def is_supported(model_type: str) -> bool:
    """Return whether Liger has kernels for this architecture."""
    # Imported here: liger-kernel is an optional dependency that needs a GPU.
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return model_type in MODEL_TYPE_TO_APPLY_LIGER_FN


def supported_switches(model_type: str, switches: dict[str, bool]) -> dict[str, bool]:
    """Return those switches that Liger has for this architecture (a GELU model has `geglu` for `swiglu`)."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    names = inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]).parameters
    candidates = switches | {"geglu": switches["swiglu"]}
    return {name: used for name, used in candidates.items() if name in names}
