"""Plans verify, which compares the base, chosen and finished model on everything."""

from __future__ import annotations

from dataclasses import dataclass

from dapt_contract.layout import stage_folder
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.verify import NamedModel, VerifyConfig
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.stage_plan import (
    BASE_REFERENCE,
    BASELINE_LINEAGE,
    StageInputs,
    StagePlan,
    measuring_ranks,
)


@dataclass(frozen=True)
class ComparedModels:
    """The models that verify compares with the base model."""

    chosen: ModelReference
    final: ModelReference
    finetuned: ModelReference | None = None
    """The model between the two, where preference tuning followed fine-tuning."""


def verify_stage(
    inputs: StageInputs, candidate: str, models: ComparedModels, *, is_evaluated: bool, attempt: int = 1
) -> StagePlan:
    """Return the plan of verify; what baseline and an evaluation have measured is not measured again.

    Args:
        inputs: of every stage after prepare.
        candidate: the chosen one.
        models: to compare.
        is_evaluated: whether an evaluation of the candidate has finished.
        attempt: that the candidate comes from.
    """
    ranks = measuring_ranks(inputs, "verify")
    reuse = [("base", BASELINE_LINEAGE)]
    if is_evaluated:
        reuse.append(("chosen", stage_folder("evaluate", attempt, candidate)))
    finetuned = (
        (NamedModel(name="finetuned", model=models.finetuned),) if models.finetuned is not None else ()
    )
    config = VerifyConfig(
        models=(
            NamedModel(name="base", model=BASE_REFERENCE),
            NamedModel(name="chosen", model=models.chosen),
            *finetuned,
            NamedModel(name="final", model=models.final),
        ),
        evaluation=common.evaluation_config(inputs.spec, inputs.prepared),
        base_items_path=BASELINE_LINEAGE,
        reuse_paths=tuple(reuse),
        spread=ranks.spread,
    )
    return StagePlan(
        kind="verify",
        attempt=attempt,
        candidate=candidate,
        config=config,
        resources=ranks.resources,
        refusal=ranks.refusal,
        signs_results=True,
    )
