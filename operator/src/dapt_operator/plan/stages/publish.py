"""Plans publish, which writes the finished model to its destination."""

from __future__ import annotations

from typing import Final

from dapt_contract.envelope import digest_of
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.publish import AdapterForm, CardFacts, PublishConfig
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.stage_parts.addresses import claims
from dapt_operator.plan.stage_parts.stage_plan import StagePlan, cpu_resources, secret_names
from dapt_operator.remembered import remembered

DECIDING_BLOCKS: Final = (
    "model",
    "corpus",
    "pretraining",
    "evaluation",
    "gates",
    "selection",
    "finetuning",
    "preference",
    "seed",
)
"""Blocks of the spec that decide the model."""
_CACHED_SPECS: Final = 64


def publish_stage(
    spec: DomainAdaptationSpec,
    candidate: str,
    final: ModelReference,
    card: CardFacts,
    *,
    recipe: ModelReference,
    attempt: int = 1,
) -> StagePlan:
    """Return the plan of publish.

    Args:
        spec: the desired spec.
        candidate: id of the chosen candidate.
        final: the last model of the chain, as the stages before have read it.
        card: facts of the model card.
        recipe: the same model by adapters alone, where the stages train adapters.
        attempt: that the candidate comes from.
    """
    config = PublishConfig(
        model=final,
        adapter=AdapterForm(recipe=recipe) if spec.output.form == "adapter" else None,
        destination=spec.output.destination,
        run_digest=run_digest(spec),
        model_card=spec.output.model_card,
        card=card,
    )
    return StagePlan(
        kind="publish",
        attempt=attempt,
        candidate=candidate,
        config=config,
        resources=cpu_resources(spec, spec.stage_resources.publish),
        secret_names=secret_names(spec, "write"),
        claims=claims((spec.output.destination,)),
        inputs_digest=digest_of({"output": spec.output.to_dict()}),
        follows_inputs=True,
    )


@remembered(_CACHED_SPECS)
def run_digest(spec: DomainAdaptationSpec) -> str:
    """Return the digest of the blocks that decide the model: equal specs find each other's result."""
    blocks = spec.to_dict()
    deciding = {name: blocks[name] for name in DECIDING_BLOCKS if name in blocks}
    # Its files are others than those of the merged model, beside which they must not come to lie.
    return digest_of(deciding | ({"form": "adapter"} if spec.output.form == "adapter" else {}))
