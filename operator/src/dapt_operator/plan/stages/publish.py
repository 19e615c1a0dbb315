"""The stages after selection: fine-tuning, preference tuning, verification, publication.

Like those before it (`blueprint`), one function a stage; what a configuration needs of an earlier stage is an argument.
"""

from __future__ import annotations

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.publish import CardFacts, PublishConfig
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import StagePlan


def publish_stage(
    spec: DomainAdaptationSpec, candidate: str, final: ModelReference, card: CardFacts, *, attempt: int = 1
) -> StagePlan:
    """Write the model to its destination."""
    config = PublishConfig(
        model=final,
        destination=spec.output.destination,
        run_digest=common.run_digest(spec),
        model_card=spec.output.model_card,
        card=card,
    )
    secrets = tuple(credential.secret_name for credential in spec.credentials if credential.use == "write")
    resources = common.one_process(spec, spec.stage_resources.publish)
    claims = common.claims((spec.output.destination,))
    return StagePlan(
        "publish", "publish", attempt, candidate, config, resources, secret_names=secrets, claims=claims
    )
