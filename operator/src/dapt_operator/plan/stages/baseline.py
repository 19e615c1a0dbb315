"""Plans baseline, which measures the frozen base model."""

from __future__ import annotations

from dapt_contract.stages.baseline import BaselineConfig
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.stage_plan import (
    BASE_REFERENCE,
    StageInputs,
    StagePlan,
    measuring_ranks,
    refusal_of_any_measuring_stage,
)


def baseline_stage(inputs: StageInputs) -> StagePlan:
    """Return the plan of baseline."""
    ranks = measuring_ranks(inputs, "baseline")
    return StagePlan(
        kind="baseline",
        config=BaselineConfig(
            model=BASE_REFERENCE,
            evaluation=common.evaluation_config(inputs.spec, inputs.prepared),
            spread=ranks.spread,
        ),
        resources=ranks.resources,
        refusal=refusal_of_any_measuring_stage(inputs),
        signs_results=True,
    )
