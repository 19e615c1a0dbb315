"""Compute of training: FLOPs, hours, and the share of the peak that the field reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec

RECOMPUTE: Final = 4.0 / 3.0
"""Checkpointed activations: the forward pass is done twice (2 of then 8 N D)."""
MEASURING_MFU: Final = 0.3
"""Share of the peak when short texts are scored, and of a CPU's: an assumption."""


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


CPU_CORE_FLOPS: Final = 50e9
"""Training in fp32 on one core: Llama shapes of 2, 8 and 53 million parameters reached 54, 63 and 91 GFLOP/s (6 N D) on
one core of a Xeon with AVX-512. Older and mobile cores reach less than half."""


@dataclass(frozen=True)
class ComputeRate:
    """What one accelerator, or one process of a CPU profile, computes."""

    training_flops_per_second: float
    measuring_flops_per_second: float
    training_text: str
    """How the rate of training was found, for formulas."""
    measuring_text: str


def cpu_rate(cores: float) -> ComputeRate:
    """Return what a process on these cores computes, by a rate that is stated, not measured on this machine."""
    flops = cores * CPU_CORE_FLOPS
    text = f"{cores:g} {'core' if cores == 1 else 'cores'} x {CPU_CORE_FLOPS / 1e9:g} GFLOP/s, assumed"
    return ComputeRate(flops, flops, text, text)


def accelerator_rate(
    profile: AdaptationProfileSpec,
    model: ModelFacts,
    sequence_length_tokens: int,
    of_cpu: ComputeRate | None,
) -> ComputeRate | None:
    """Return the rate by the profile's peak; for a CPU profile without one the given rate. None: not known."""
    peak_tflops = profile.accelerator.peak_tflops
    if peak_tflops is None:
        return of_cpu if profile.accelerator.kind == "cpu" else None
    peak, measuring = peak_tflops * 1e12, f"{peak_tflops:g} TFLOP/s x {MEASURING_MFU:.0%}, assumed"
    if profile.accelerator.kind == "cpu":  # the published shares are of GPUs
        return ComputeRate(peak * MEASURING_MFU, peak * MEASURING_MFU, measuring, measuring)
    used = utilization(model, sequence_length_tokens)
    dense = ", a dense model: a mixture of experts reaches less" if model.active_parameters else ""
    training = f"{peak_tflops:g} TFLOP/s x {used.fraction:.1%} of the peak, {used.source}{dense}"
    return ComputeRate(peak * used.fraction, peak * MEASURING_MFU, training, measuring)


def training_flops(model: ModelFacts, tokens: float, *, recompute: bool) -> float:
    """Return 6 N D (Kaplan et al. 2020, section 2.1), times 4/3 when activations are recomputed.

    Of a mixture of experts N counts what one token passes.
    """
    return 6.0 * model.parameters_of_a_token * tokens * (RECOMPUTE if recompute else 1.0)


def measuring_flops(model: ModelFacts, tokens: float) -> float:
    """Return 2 N D: forward passes alone."""
    return 2.0 * model.parameters_of_a_token * tokens
