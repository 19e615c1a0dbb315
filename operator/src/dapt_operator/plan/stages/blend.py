"""Plans blend, which measures perplexities of averages and interpolations, all in one run."""

from __future__ import annotations

from dapt_contract.stages.blend import Blend, BlendConfig
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, StagePlan, measuring_ranks


def blend_stage(
    inputs: StageInputs, blends: tuple[Blend, ...], *, attempt: int, round_name: str | None = None
) -> StagePlan:
    """Return the plan of blend for the blends of one attempt.

    `round_name` distinguishes a further run of an attempt, for blends that an edit of the selection added, from the
    first.
    """
    ranks = measuring_ranks(inputs, "blend")
    return StagePlan(
        kind="blend",
        attempt=attempt,
        candidate=round_name,
        config=BlendConfig(
            blends=blends,
            context_length_tokens=inputs.prepared.sequence_length_tokens,
            spread=ranks.spread,
        ),
        resources=ranks.resources,
        refusal=ranks.refusal,
        signs_results=True,
    )
