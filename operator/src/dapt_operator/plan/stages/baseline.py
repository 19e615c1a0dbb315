"""Plans baseline, which measures the frozen base model."""

from __future__ import annotations

from dapt_contract.stages.baseline import BaselineConfig
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.stage_plan import (
    BASE_REFERENCE,
    StageInputs,
    StagePlan,
    measuring_resources,
)


def baseline_stage(inputs: StageInputs) -> StagePlan:
    """Return the plan of baseline."""
    spec = inputs.spec
    return StagePlan(
        kind="baseline",
        config=BaselineConfig(
            model=BASE_REFERENCE, evaluation=common.evaluation_config(spec, inputs.prepared)
        ),
        resources=measuring_resources(spec, inputs.profile, spec.stage_resources.baseline),
        signs_results=True,
    )
