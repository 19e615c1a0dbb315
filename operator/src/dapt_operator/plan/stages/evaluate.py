"""Plans evaluate, which measures the tasks and probes of one candidate."""

from __future__ import annotations

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.evaluate import EvaluateConfig
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.stage_plan import (
    BASELINE_LINEAGE,
    StageInputs,
    StagePlan,
    measuring_ranks,
)


def evaluate_stage(
    inputs: StageInputs,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
    digest: str | None = None,
) -> StagePlan:
    """Return the plan of one evaluation.

    Args:
        inputs: of every stage after prepare.
        candidate: its id.
        model: where its weights lie.
        attempt: that it comes from.
        digest: of the weights that are to be scored; others are refused.
    """
    ranks = measuring_ranks(inputs, "evaluate")
    config = EvaluateConfig(
        candidate=candidate,
        model=model,
        evaluation=common.evaluation_config(inputs.spec, inputs.prepared),
        base_items_path=BASELINE_LINEAGE,
        expected_digest=digest,
        spread=ranks.spread,
    )
    return StagePlan(
        kind="evaluate",
        attempt=attempt,
        candidate=candidate,
        inputs_digest=digest,
        config=config,
        resources=ranks.resources,
        refusal=ranks.refusal,
        signs_results=True,
    )
