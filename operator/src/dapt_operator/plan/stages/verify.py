"""The stages after selection: fine-tuning, preference tuning, verification, publication.

Like those before it (`blueprint`), one function a stage; what a configuration needs of an earlier stage is an argument.
"""

from __future__ import annotations

from dapt_contract.layout import STAGES
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.verify import NamedModel, VerifyConfig
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import BASE_REFERENCE, BASELINE_LINEAGE, StagePlan


def verify_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    chosen: ModelReference,
    final: ModelReference,
    *,
    finetuned: ModelReference | None = None,
    evaluated: bool,
    attempt: int = 1,
) -> StagePlan:
    """Compare base, chosen and final model; what was measured before is read again, not measured again.

    `finetuned` is the model between chosen and final, where preference tuning came after fine-tuning.
    """
    reuse = [("base", BASELINE_LINEAGE)]
    if evaluated:
        reuse.append(("chosen", f"{STAGES}/evaluate-a{attempt}-{candidate}"))
    config = VerifyConfig(
        models=(
            NamedModel(name="base", model=BASE_REFERENCE),
            NamedModel(name="chosen", model=chosen),
            *((NamedModel(name="finetuned", model=finetuned),) if finetuned is not None else ()),
            NamedModel(name="final", model=final),
        ),
        evaluation=common.evaluation_config(spec, prepared),
        base_items_path=BASELINE_LINEAGE,
        reuse_paths=tuple(reuse),
    )
    return StagePlan(
        "verify", "verify", attempt, candidate, config, common.measuring(spec, profile, "verify")
    )
