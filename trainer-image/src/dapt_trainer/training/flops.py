"""The arithmetic of training, for the share of the accelerators' peak that is used."""

from __future__ import annotations

from typing import Any


def flops_per_token(model: Any) -> float:
    """2 N forward, 2 N back through the activations, and 2 for each weight that is trained.

    So 6 N when all are (Kaplan et al. 2020, section 2.1), and about 4 N for LoRA. Attention over long sequences and
    activations that are computed twice are left out, as in the published figures of model FLOPs utilization.
    """
    weights = [(_numbers(weight), weight.requires_grad) for weight in model.parameters()]
    return 4.0 * sum(count for count, _ in weights) + 2.0 * sum(
        count for count, trained in weights if trained
    )


def _numbers(weight: Any) -> int:
    """How many there are over all ranks: ZeRO's stage 3 leaves an empty tensor on each."""
    return int(getattr(weight, "ds_numel", weight.numel()))
