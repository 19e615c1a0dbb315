"""How long a training takes to stop when it is requested to: its optimizer step ends, then it writes a checkpoint."""

from __future__ import annotations

from typing import Final

from dapt_contract.base import Contract
from dapt_contract.inputs.model_size import checkpoint_size
from dapt_contract.pod.environment import DEFAULT_VOLUME_BYTES_PER_SECOND
from dapt_contract.stages.common import TrainingConfig
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.plan.sizing.compute import accelerator_rate, training_flops
from dapt_operator.stage_run import RunResources

WRITE_BYTES_PER_SECOND: Final = DEFAULT_VOLUME_BYTES_PER_SECOND
"""That one node writes to the work volume, where the profile does not say."""


def stop_seconds(
    config: Contract,
    resources: RunResources,
    model: ModelFacts | None,
    profile: AdaptationProfileSpec,
    step_seconds: float | None = None,
) -> float | None:
    """Return the estimated seconds from the request to the written checkpoint; None for a stage that does not train.

    seconds = step + checkpoint bytes / (nodes x bytes a second): the ranks of each node write their share of weights
    and optimizer state.

    Args:
        config: of the stage.
        resources: of its run.
        model: that is trained; None while it is not known.
        profile: with the accelerators' peak.
        step_seconds: of an optimizer step, where a run has measured it; None: by the peak, where the profile has it.
    """
    if not isinstance(config, TrainingConfig) or model is None:
        return None
    size = checkpoint_size(model, config.lora, config.distribution.precision)
    bandwidth = profile.volume_bytes_per_second or WRITE_BYTES_PER_SECOND
    save = (size.weights_bytes + size.optimizer_bytes) / (resources.nodes * bandwidth)
    step = step_seconds or _estimated_step_seconds(config, resources, model, profile)
    return save + step


def _estimated_step_seconds(
    config: TrainingConfig, resources: RunResources, model: ModelFacts, profile: AdaptationProfileSpec
) -> float:
    rate = accelerator_rate(profile, model, config.sequence_length_tokens, None)
    if rate is None:
        return 0.0
    tokens = config.global_batch_size * config.sequence_length_tokens
    flops = training_flops(model, tokens, recompute=config.distribution.gradient_checkpointing)
    return flops / (rate.training_flops_per_second * resources.nodes * resources.processes_per_node)
