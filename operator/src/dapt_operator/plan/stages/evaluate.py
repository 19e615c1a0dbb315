"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.evaluate import EvaluateConfig
from dapt_contract.stages.prepare import (
    PrepareFacts,
)
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import BASELINE_LINEAGE, StagePlan


def evaluate_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
    digest: str | None = None,
) -> StagePlan:
    """Measure one candidate; `digest`: of the weights that are to be scored, and no others."""
    config = EvaluateConfig(
        candidate=candidate,
        model=model,
        evaluation=common.evaluation_config(spec, prepared),
        base_items_path=BASELINE_LINEAGE,
        expected_digest=digest,
    )
    return StagePlan(
        "evaluate", "evaluate", attempt, candidate, config, common.measuring(spec, profile, "evaluate")
    )
