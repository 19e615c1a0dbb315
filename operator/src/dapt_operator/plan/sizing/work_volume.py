"""Compares what an attempt writes to the work volume with the size that the profile's claimTemplate asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dapt_contract.inputs.model_size import CheckpointSize, checkpoint_size
from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.number_format import size
from dapt_operator.plan.sizing.model_fit.memory import GIB
from dapt_operator.plan.sizing.resolve import pretraining_lora, training_precision
from dapt_operator.plan.sizing.stage_needs import StageNeed

FILE_SYSTEM_FRACTION: Final = 0.05
"""Share of a volume that its file system keeps, as ext4 does by default."""
_UNAVOIDABLE: Final = frozenset({"prepare", "pretrain"})
"""Stages whose files every attempt needs at once; prepare refuses to start without the space for them."""


@dataclass(frozen=True)
class WorkVolume:
    """What one attempt writes, and the size of the volume."""

    needed_bytes: float
    """Of all stages of one attempt, at most; blends and tuned models included."""
    size_bytes: float | None
    """As the profile's claimTemplate asks for it; None: not known."""
    problems: tuple[str, ...]
    """Why no attempt can run."""
    warnings: tuple[str, ...]
    """Why one may end for want of space."""


def work_volume(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    model: ModelFacts,
    needs: Sequence[StageNeed],
    checkpoints: int | None,
) -> WorkVolume:
    """Return the comparison; further attempts are left out, since prepare compares those with the free space.

    Args:
        spec: of the adaptation.
        profile: whose claimTemplate may say a size.
        model: the base model, or the one with a grown tokenizer.
        needs: of all stages.
        checkpoints: of one attempt; None: not known.
    """
    needed = sum(need.disk_bytes for need in needs)
    requested = profile.storage.requested_bytes
    volume = WorkVolume(needed, requested, (), ())
    if requested is None:
        return volume
    offered = (
        f"the profile's claimTemplate asks for {size(requested)}, of which the file system keeps"
        f" {FILE_SYSTEM_FRACTION:.0%}"
    )
    usable = requested * (1.0 - FILE_SYSTEM_FRACTION)
    changes = _Changes(spec, profile, model, checkpoints, usable)
    least = sum(need.disk_bytes for need in needs if need.stage in _UNAVOIDABLE)
    if least > usable:
        advice = "; ".join(changes.that_fit(least))
        text = f"the prepared data and the checkpoints of one attempt take {size(least)}, and {offered}"
        return WorkVolume(needed, requested, (f"{text}: what would fit: {advice}",), ())
    if needed > usable:
        parts = ", ".join(f"{need.stage} {size(need.disk_bytes)}" for need in needs if need.disk_bytes)
        advice = "; ".join(changes.that_fit(needed))
        text = f"the stages of one attempt write up to {size(needed)} ({parts}), and {offered}"
        return WorkVolume(needed, requested, (), (f"{text}: what would fit: {advice}",))
    return volume


@dataclass(frozen=True)
class _Changes:
    """Finds changes, each enough by itself."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    model: ModelFacts
    checkpoints: int | None
    usable_bytes: float

    def that_fit(self, needed_bytes: float) -> Iterator[str]:
        """Yield the changes by which so many bytes become few enough."""
        if self.checkpoints is not None:
            others = needed_bytes - self._size(pretraining_lora(self.spec)).total_bytes(self.checkpoints)
            yield from self._of_checkpoints(others, self.checkpoints)
        gib = math.ceil(needed_bytes / (1.0 - FILE_SYSTEM_FRACTION) / GIB)
        yield f"a claimTemplate that asks for {gib}Gi or more"

    def _of_checkpoints(self, others_bytes: float, count: int) -> Iterator[str]:
        own = self._size(pretraining_lora(self.spec))
        fewer = (number for number in range(count - 1, 0, -1))
        fitting = next(
            (number for number in fewer if others_bytes + own.total_bytes(number) <= self.usable_bytes), None
        )
        if fitting is not None:
            yield f"spec.pretraining.checkpoints.count of at most {fitting}"
        if self.spec.pretraining.method.lora is None:
            with_lora = others_bytes + self._size(LoraConfig()).total_bytes(count)
            if with_lora <= self.usable_bytes:
                yield f"lora ({size(with_lora)})"

    def _size(self, lora: LoraConfig | None) -> CheckpointSize:
        return checkpoint_size(self.model, lora, training_precision(self.spec, self.profile))
