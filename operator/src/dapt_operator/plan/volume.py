"""Whether evaluations can run beside pretraining: the work volume must be mountable by several nodes at once."""

from __future__ import annotations

from typing import Final

from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.plan.blueprint import has_scores

MANY_NODES: Final = frozenset({"ReadWriteMany", "ReadOnlyMany"})


def shares_volume(profile: AdaptationProfileSpec) -> bool:
    """Whether pods on several nodes can mount the work volume. Of a claim that is there already nothing is known."""
    claim = profile.storage.claim_template
    modes = claim.get("accessModes") if claim is not None else None
    return not modes or any(mode in MANY_NODES for mode in modes)


def most_at_once(profile: AdaptationProfileSpec) -> int:
    """Evaluations at the same time; one where a volume is on one node alone."""
    return profile.evaluation.concurrency if shares_volume(profile) else 1


def volume_warnings(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> tuple[str, ...]:
    """What to know about evaluations before the run."""
    if spec.evaluation.when == "end" or not has_scores(spec) or shares_volume(profile):
        return ()
    claim = profile.storage.claim_template or {}
    modes = ", ".join(str(mode) for mode in claim.get("accessModes") or ())
    return (
        f"the profile's work volume ({modes}) can be mounted by one node alone: evaluations run after pretraining, one"
        " at a time, not beside it; a ReadWriteMany volume lets them run beside it",
    )
