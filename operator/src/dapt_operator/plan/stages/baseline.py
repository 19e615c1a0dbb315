"""Plans baseline, which measures the frozen base model."""

from __future__ import annotations

from dapt_contract.stages.baseline import BaselineConfig
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.stage_plan import (
    BASE_REFERENCE,
    StageInputs,
    StagePlan,
    measuring_ranks,
)


def baseline_stage(inputs: StageInputs) -> StagePlan:
    """Return the plan of baseline.

    Raises:
        RefusedError: no way to divide the model fits.
    """
    ranks = measuring_ranks(inputs, "baseline")
    return StagePlan(
        kind="baseline",
        config=BaselineConfig(
            model=BASE_REFERENCE,
            evaluation=common.evaluation_config(inputs.spec, inputs.prepared),
            spread=ranks.spread,
        ),
        resources=ranks.resources,
        signs_results=True,
    )
