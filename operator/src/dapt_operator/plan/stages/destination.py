"""Plans destination, which tries where the model will be published before anything is paid for."""

from __future__ import annotations

from dapt_contract.envelope import digest_of
from dapt_contract.stages.destination import DestinationConfig
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.stage_parts.addresses import claims
from dapt_operator.plan.stage_parts.stage_plan import StagePlan, cpu_resources, secret_names
from dapt_operator.plan.stages.publish import run_digest

_DIGITS = 12


def destination_stage(spec: DomainAdaptationSpec) -> StagePlan:
    """Return the plan of the trial: of this place with these credentials, whatever else of the spec is edited."""
    destination, secrets = spec.output.destination, secret_names(spec, "write")
    digest = digest_of({"destination": destination, "secrets": list(secrets)})
    return StagePlan(
        kind="destination",
        candidate=digest.removeprefix("sha256:")[:_DIGITS],
        config=DestinationConfig(destination=destination, run_digest=run_digest(spec)),
        resources=cpu_resources(spec, spec.stage_resources.publish),
        secret_names=secrets,
        claims=claims((destination,)),
    )
