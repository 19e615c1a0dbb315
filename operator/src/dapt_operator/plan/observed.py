"""Everything that a decision may depend on, as frozen values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dapt_operator.api.v1alpha1.conditions import INVALID_SPEC, PROFILE_AMBIGUOUS, PROFILE_NOT_FOUND
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec, Retries
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec

# `dapt plan` needs the desired state alone, and status, ledger and launchers take a while to load.
if TYPE_CHECKING:
    from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
    from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
    from dapt_operator.stage_run import Manifest, OrphanPod, Owner, RunState

NO_CONTENTS: Final[Mapping[str, str]] = MappingProxyType({})
"""Of an adaptation without sources on the machine that plans. One object, so that results are remembered by it."""


@dataclass(frozen=True)
class DesiredState:
    """The desired spec with its profile, each valid by itself; `admission` judges them together."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    profile_name: str = ""
    profile_digest: str = ""
    contents: Mapping[str, str] = field(default_factory=lambda: NO_CONTENTS, hash=False)
    """Digest of the files of a source, for sources on the machine that plans; empty in a cluster."""


@dataclass(frozen=True)
class Refusal:
    """Why an adaptation cannot be worked on until the spec or the profile changes."""

    reason: str
    message: str
    spec: DomainAdaptationSpec | None = None
    """None when not even the spec is valid."""
    retries: Retries | None = None
    """Of the profile; None when there is no valid one. Runs that exist go on meanwhile, and may fail."""


@dataclass(frozen=True)
class Obstacle:
    """Why an object of a run cannot be created until a user has fixed it."""

    reason: str
    message: str


@dataclass(frozen=True)
class Observed:
    """One adaptation at one moment."""

    now: datetime
    owner: Owner
    generation: int
    resource_version: str
    is_deleting: bool
    desired: DesiredState | Refusal
    status: DomainAdaptationStatus
    runs: tuple[RunState, ...]
    """Runs of this very resource (its uid) that the operator has created: see `own_runs`. Runs of an earlier one of the
    same name are never adopted."""
    age_seconds: float = 0.0
    """Since the creation of the resource."""
    is_status_whole: bool = True
    """Whether all of the stored status could be read; what could not is written again."""
    instance: str = ""
    """Operator installation that reconciles; empty for the local run."""
    obstacle: Obstacle | None = None
    """What prevented the creation of a run's objects in this very reconcile."""
    is_local: bool = False
    """Whether it runs on one machine, whose status file may be as long as it is."""
    is_check_due: bool = False
    """Whether it is time to make sure that the objects which live runs use exist."""
    keeps_ended_runs: bool = False
    """Whether the objects of ended runs are files of this machine, which stay whatever the spec says."""
    strangers: tuple[RunState, ...] = ()
    """Objects that claim to be runs of this resource and do not count: a backup brought them back, or somebody made
    them. Nothing is read from them."""
    orphans: tuple[OrphanPod, ...] = ()
    """Pods of this resource's runs whose Job is gone without them. They count for nothing."""
    recreated: tuple[str, ...] = ()
    """Objects as KIND/NAME that were gone and that this very reconcile has created again."""
    new_key_digest: str = ""
    """SHA-256 of a signing key that this very reconcile makes as soon as the status has the digest; else empty."""
    is_signing_key_lost: bool = False
    """Whether this very reconcile has found that the signing Secret does not exist, which a live run waits for."""
    num_passed_over: int = 0
    """Run numbers skipped in this reconcile, because a ConfigMap of ours has the name and holds something else: it was
    left by a run that was never created."""

    @property
    def is_foreign(self) -> bool:
        """Whether another operator installation owns the adaptation; it is left alone."""
        owner = self.status.digests.owner if self.status.digests else None
        return bool(owner and self.instance and owner != self.instance)

    @property
    def has_new_signing_key(self) -> bool:
        """Whether the key of the checkpoints' signatures was gone, and another one has just taken its place."""
        return any(name.startswith("Secret/") for name in self.recreated)

    @property
    def deletes_ended_runs(self) -> bool:
        """Whether the objects of a run go once the status has its end. Not while the spec is not known."""
        spec = self.desired.spec
        if self.keeps_ended_runs or spec is None:
            return False
        return spec.cleanup is None or spec.cleanup.finished_runs == "Delete"

    @property
    def is_suspended(self) -> bool:
        """Whether the spec is known and asks for suspension."""
        return self.desired.spec is not None and self.desired.spec.suspend

    @cached_property
    def live(self) -> tuple[RunState, ...]:
        """Runs whose processes may exist."""
        return tuple(run for run in self.runs if run.is_live)


def find_run(runs: Iterable[RunState], record: RunRecord) -> RunState | None:
    """Return the observed state of a record's newest run; None when no object of the run exists."""
    return next((run for run in runs if record.is_about(run.identity)), None)


def observe(
    resource: Manifest,
    profile: Manifest | None,
    runs: tuple[RunState, ...],
    now: datetime,
    *,
    local: bool = True,
    instance: str = "",
    default_profiles: tuple[str, ...] = (),
    contents: Mapping[str, str] | None = None,
    is_check_due: bool = False,
    keeps_ended_runs: bool = False,
    orphans: tuple[OrphanPod, ...] = (),
) -> Observed:
    """Return raw objects as one frozen value.

    Args:
        resource: the DomainAdaptation as stored.
        profile: its AdaptationProfile, None when there is none.
        runs: what a launcher read from the children.
        now: aware, UTC.
        local: whether `file://` sources can be read where the stages run.
        instance: operator installation that reconciles; empty for the local run.
        default_profiles: names of all profiles marked as default, when the resource names none.
        contents: digest of the files of a source, for sources on this machine.
        is_check_due: whether it is time to make sure that the objects which live runs use exist.
        keeps_ended_runs: whether the objects of ended runs are files of this machine, which stay.
        orphans: pods that no object owns.
    """
    from dapt_operator.api.v1alpha1.stored.ledger import Ledger
    from dapt_operator.launchers.observe.containers import parse_time
    from dapt_operator.plan.own_runs import own_runs
    from dapt_operator.plan.parsed import read_status
    from dapt_operator.stage_run import Owner

    metadata = resource["metadata"]
    owner = Owner(
        namespace=metadata.get("namespace", "default"), name=metadata["name"], uid=metadata.get("uid", "")
    )
    status = read_status(resource)
    created = parse_time(metadata.get("creationTimestamp"))
    age_seconds = (now - created).total_seconds() if created is not None else 0.0
    own = own_runs(runs, owner, status.model.ledger or Ledger(), age_seconds)
    own_names = {run.object_name for run in own}
    desired = read_desired(resource, profile, local=local, default_profiles=default_profiles)
    if contents and isinstance(desired, DesiredState):
        desired = replace(desired, contents=MappingProxyType(dict(contents)))
    return Observed(
        now=now,
        owner=owner,
        generation=int(metadata.get("generation", 1)),
        resource_version=str(metadata.get("resourceVersion", "")),
        is_deleting=bool(metadata.get("deletionTimestamp")),
        desired=desired,
        status=status.model,
        is_status_whole=status.is_whole,
        runs=own,
        strangers=tuple(
            run for run in runs if run.identity.uid == owner.uid and run.object_name not in own_names
        ),
        orphans=tuple(pod for pod in orphans if pod.identity.uid == owner.uid),
        age_seconds=age_seconds,
        instance=instance,
        is_local=local,
        is_check_due=is_check_due,
        keeps_ended_runs=keeps_ended_runs,
    )


def read_desired(
    resource: Manifest, profile: Manifest | None, *, local: bool, default_profiles: tuple[str, ...] = ()
) -> DesiredState | Refusal:
    """Return the spec and its profile, or which of them is missing or wrong."""
    from dapt_operator.plan.parsed import read_adaptation, read_profile

    adaptation = read_adaptation(resource, local=local)
    if adaptation.model is None:
        offered = read_profile(profile, local=local).model if profile is not None else None
        retries = offered.spec.retries if offered is not None else None
        return Refusal(adaptation.reason, adaptation.message, retries=retries)
    spec = adaptation.model.spec
    if spec.profile is None and len(default_profiles) > 1:
        names = ", ".join(sorted(default_profiles))
        message = (
            f"{len(default_profiles)} AdaptationProfiles are marked as default ({names}): leave one marked, or name"
            " one in spec.profile"
        )
        return Refusal(PROFILE_AMBIGUOUS, message, spec)
    if profile is None and spec.profile:
        message = f"there is no AdaptationProfile {spec.profile}: create it, or name another in spec.profile"
        return Refusal(PROFILE_NOT_FOUND, message, spec)
    if profile is None:
        message = "no AdaptationProfile is marked as default: name one in spec.profile"
        return Refusal(PROFILE_NOT_FOUND, message, spec)
    read = read_profile(profile, local=local)
    if read.model is None:
        return Refusal(INVALID_SPEC, read.message, spec)
    return DesiredState(spec, read.model.spec, read.model.metadata.name, read.digest)
