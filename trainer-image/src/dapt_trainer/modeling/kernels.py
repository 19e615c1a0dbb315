"""Liger's fused kernels: on a GPU, where they are installed and where they pay.

They trade time for memory: norms, rotary embedding and the gated MLP in one pass each, and a loss that never holds all
logits. With few tokens in a forward pass there is nothing to win. The two thresholds below are assumptions until
`python -m bench gpu` has run on an accelerator; it prints what the kernels bring.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

SMALLEST_PASS_TOKENS = 4096
"""Tokens of a forward pass from which the fused kernels are used."""
LARGE_LOGITS_BYTES = 4 * 2**30
"""Logits, their fp32 copy and gradients, from which the fused loss is used: below, plain logits are faster."""
LOGIT_BYTES = 12


@dataclass(frozen=True)
class Kernels:
    """What is used, and why."""

    liger: dict[str, bool] | None
    """Liger's switches; None: transformers' own layers."""
    reason: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Keywords of `TrainingArguments`."""
        if self.liger is None:
            return {}
        return {"use_liger_kernel": True, "liger_kernel_config": dict(self.liger)}

    @property
    def text(self) -> str:
        """For log and report."""
        if self.liger is None:
            return f"transformers' own layers: {self.reason}"
        return f"Liger ({', '.join(name for name, used in self.liger.items() if used)}): {self.reason}"


def choose_kernels(
    config: Any, device: torch.device, *, tokens_per_pass: int, zero_stage: int, installed: bool | None = None
) -> Kernels:
    """Whether and which of Liger's kernels are used.

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
    if not _knows(config.model_type):
        return Kernels(None, f"liger-kernel has none for {config.model_type}")
    if tokens_per_pass < SMALLEST_PASS_TOKENS:
        return Kernels(
            None, f"{tokens_per_pass} tokens a forward pass, under {SMALLEST_PASS_TOKENS}, gain nothing"
        )
    large = tokens_per_pass * config.vocab_size * LOGIT_BYTES >= LARGE_LOGITS_BYTES and zero_stage < 3
    switches = {"rope": True, "rms_norm": True, "swiglu": True}
    loss = {"fused_linear_cross_entropy": large, "cross_entropy": False}
    return Kernels(_known_switches(config.model_type, switches | loss), f"{tokens_per_pass} tokens a pass")


def _knows(model_type: str) -> bool:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return model_type in MODEL_TYPE_TO_APPLY_LIGER_FN


def _known_switches(model_type: str, switches: dict[str, bool]) -> dict[str, bool]:
    """Those that Liger has for this architecture (a GELU model has `geglu` for `swiglu`)."""
    import inspect

    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    known = inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]).parameters
    wanted = switches | {"geglu": switches["swiglu"]}
    return {name: used for name, used in wanted.items() if name in known}
