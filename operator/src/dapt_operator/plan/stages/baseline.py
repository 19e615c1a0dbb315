"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

from dapt_contract.stages.baseline import BaselineConfig
from dapt_contract.stages.prepare import (
    PrepareFacts,
)
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import BASE_REFERENCE, StagePlan


def baseline_stage(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, prepared: PrepareFacts
) -> StagePlan:
    """Measure the frozen base model."""
    config = BaselineConfig(model=BASE_REFERENCE, evaluation=common.evaluation_config(spec, prepared))
    return StagePlan("baseline", "baseline", 1, None, config, common.measuring(spec, profile, "baseline"))
