"""Compute of training: FLOPs, hours, and the share of the peak that the field reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dapt_contract.stages.prepare import ModelFacts

RECOMPUTE: Final = 4.0 / 3.0
"""Checkpointed activations: the forward pass is done twice (2 of then 8 N D)."""
MEASURING_MFU: Final = 0.3
"""Share of the peak when short texts are scored: an assumption, since evaluation is a small part."""


@dataclass(frozen=True)
class Utilization:
    """Share of the peak FLOPs that training reaches."""

    fraction: float
    source: str


def utilization(model: ModelFacts, sequence_length_tokens: int) -> Utilization:
    """Return the share that LLM Foundry publishes for a model of this size (bf16, one node of 8 H100)."""
    if model.parameters < 500_000_000:
        return Utilization(0.30, "assumed: small models are not in the published tables")
    if model.parameters < 3_000_000_000:
        return Utilization(0.418, "LLM Foundry, 1B on 8 H100")
    if sequence_length_tokens >= 8192:
        return Utilization(0.371, "LLM Foundry, 7B at 8k on 8 H100")
    return Utilization(0.464, "LLM Foundry, 7B at 2k on 8 H100")


def training_flops(model: ModelFacts, tokens: float, *, recompute: bool) -> float:
    """Return 6 N D (Kaplan et al. 2020, section 2.1), times 4/3 when activations are recomputed."""
    return 6.0 * model.parameters * tokens * (RECOMPUTE if recompute else 1.0)


def measuring_flops(model: ModelFacts, tokens: float) -> float:
    """Return 2 N D: forward passes alone."""
    return 2.0 * model.parameters * tokens


def accelerator_hours(flops: float, peak_tflops: float, fraction: float) -> float:
    """Return the hours of one accelerator: FLOPs / (peak x MFU)."""
    return flops / (peak_tflops * 1e12 * fraction) / 3600.0
