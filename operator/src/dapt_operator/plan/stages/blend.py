"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

from dapt_contract.stages.blend import Blend, BlendConfig
from dapt_contract.stages.prepare import (
    PrepareFacts,
)
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import StagePlan


def blend_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    blends: tuple[Blend, ...],
    *,
    attempt: int,
    round_name: str | None = None,
) -> StagePlan:
    """Perplexities of averages and interpolations, all in one run.

    `round_name` tells a second run of an attempt, for blends that an edit of the selection asked for, from the first.
    """
    config = BlendConfig(blends=blends, context_length_tokens=prepared.sequence_length_tokens)
    resources = common.measuring(spec, profile, "evaluate")
    return StagePlan("blend", "blend", attempt, round_name, config, resources)
