"""Frozen facts: everything that a decision may depend on, counted once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dapt_operator.api.v1alpha1.conditions import INVALID_SPEC, PROFILE_AMBIGUOUS, PROFILE_NOT_FOUND
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.plan.parsed import read_adaptation, read_profile, read_status
from dapt_operator.stage_run import Manifest, Owner, RunState


@dataclass(frozen=True)
class Wish:
    """The resource and its profile, read and judged.

    Either both `spec` and `profile` are there and `reason` is empty, or `reason` and `message` say what is wrong.
    """

    spec: DomainAdaptationSpec | None
    profile: AdaptationProfileSpec | None
    profile_name: str = ""
    profile_digest: str = ""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Obstacle:
    """Why an object of a run cannot be made before a person has done something."""

    reason: str
    message: str


@dataclass(frozen=True)
class Observed:
    """One adaptation at one moment."""

    now: datetime
    owner: Owner
    generation: int
    resource_version: str
    deleting: bool
    wish: Wish
    status: DomainAdaptationStatus
    runs: tuple[RunState, ...]
    """Runs of this very resource (its uid); others are waited out, never adopted."""
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The stored status as we would write it."""
    instance: str = ""
    """Which operator installation looks; empty for the local run."""
    obstacle: Obstacle | None = None
    """What stood in the way in this very visit, when the objects of a run were made."""
    passed_over: int = 0
    """So many numbers of a try were found burnt in this very visit: a ConfigMap of ours has the name and holds
    something else, left from a try that never became a run."""

    @property
    def is_foreign(self) -> bool:
        """Whether another operator installation owns the adaptation: it is left alone."""
        owner = self.status.digests.owner if self.status.digests else None
        return bool(owner and self.instance and owner != self.instance)

    @property
    def live(self) -> tuple[RunState, ...]:
        """Runs whose processes may be there."""
        return tuple(run for run in self.runs if run.is_live)


def observe(
    resource: Manifest,
    profile: Manifest | None,
    runs: tuple[RunState, ...],
    now: datetime,
    *,
    local: bool = True,
    instance: str = "",
    default_profiles: tuple[str, ...] = (),
) -> Observed:
    """Bring raw objects into one frozen value.

    Args:
        resource: the DomainAdaptation as stored.
        profile: its AdaptationProfile, None when there is none.
        runs: what a launcher made of the children.
        now: aware, UTC.
        local: whether `file://` sources can be read where the stages run.
        instance: which operator installation looks; empty for the local run.
        default_profiles: names of all profiles marked as default, when the resource names none.
    """
    metadata = resource["metadata"]
    owner = Owner(
        namespace=metadata.get("namespace", "default"), name=metadata["name"], uid=metadata.get("uid", "")
    )
    status = read_status(resource)
    return Observed(
        now=now,
        owner=owner,
        generation=int(metadata.get("generation", 1)),
        resource_version=str(metadata.get("resourceVersion", "")),
        deleting=bool(metadata.get("deletionTimestamp")),
        wish=read_wish(resource, profile, local=local, default_profiles=default_profiles),
        status=status.model,
        written=status.written,
        runs=tuple(run for run in runs if run.identity.uid == owner.uid),
        instance=instance,
    )


def read_wish(
    resource: Manifest, profile: Manifest | None, *, local: bool, default_profiles: tuple[str, ...] = ()
) -> Wish:
    """Judge resource and profile each by itself; `admission` judges them together."""
    read = read_adaptation(resource, local=local)
    adaptation = read.model
    if adaptation is None:
        return Wish(None, None, reason=read.reason, message=read.message)
    if adaptation.spec.profile is None and len(default_profiles) > 1:
        names = ", ".join(sorted(default_profiles))
        return Wish(
            adaptation.spec,
            None,
            reason=PROFILE_AMBIGUOUS,
            message=f"{len(default_profiles)} AdaptationProfiles are marked as default ({names}): leave one marked,"
            " or name one in spec.profile",
        )
    if profile is None:
        name = adaptation.spec.profile
        return Wish(
            adaptation.spec,
            None,
            reason=PROFILE_NOT_FOUND,
            message=f"there is no AdaptationProfile {name}: create it, or name another in spec.profile"
            if name
            else "no AdaptationProfile is marked as default: name one in spec.profile",
        )
    offered = read_profile(profile, local=local)
    if offered.model is None:
        return Wish(adaptation.spec, None, reason=INVALID_SPEC, message=offered.message)
    return Wish(adaptation.spec, offered.model.spec, offered.model.metadata.name, offered.digest)
