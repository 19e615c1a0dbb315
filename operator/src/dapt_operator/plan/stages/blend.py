"""Plans blend, which measures perplexities of averages and interpolations, all in one run."""

from __future__ import annotations

import math
from typing import Final

from dapt_contract.measure import Measure
from dapt_contract.stages.blend import Blend, BlendConfig, KeepRule
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates.perplexity import loss_nats
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, StagePlan, measuring_ranks

KEPT_BLENDS: Final = 3
"""Blends of one run that stay on the volume: selection judges as many candidates at most."""


def blend_stage(
    inputs: StageInputs,
    blends: tuple[Blend, ...],
    base: Measure,
    *,
    attempt: int,
    round_name: str | None = None,
) -> StagePlan:
    """Return the plan of blend for the blends of one attempt.

    Args:
        inputs: of every stage after prepare.
        blends: to make and measure.
        base: the base model's measure, which the gate compares with.
        attempt: whose blends they are.
        round_name: distinguishes a further run of an attempt, for blends that an edit of the selection added, from the
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
            keeps=keep_rule(inputs.spec, base),
        ),
        resources=ranks.resources,
        refusal=ranks.refusal,
        signs_results=True,
    )


def keep_rule(spec: DomainAdaptationSpec, base: Measure) -> KeepRule:
    """Return which blends stay: the first that selection would judge, by the gates as they are now."""
    limit = loss_nats(base.general, "a") + math.log1p(spec.gates.max_general_perplexity_increase)
    # Against a base model without a finite perplexity nothing passes.
    return KeepRule(most=KEPT_BLENDS, general_limit_a_nats=limit) if math.isfinite(limit) else KeepRule()
