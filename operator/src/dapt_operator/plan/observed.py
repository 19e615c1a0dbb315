"""Everything that a decision may depend on, as frozen values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from dapt_operator.api.v1alpha1.conditions import INVALID_SPEC, PROFILE_AMBIGUOUS, PROFILE_NOT_FOUND
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.launchers.observe.containers import parse_time
from dapt_operator.plan.own_runs import own_runs
from dapt_operator.plan.parsed import read_adaptation, read_profile, read_status
from dapt_operator.stage_run import Manifest, Owner, RunState


@dataclass(frozen=True)
class DesiredState:
    """The desired spec with its profile, each valid by itself; `admission` judges them together."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    profile_name: str = ""
    profile_digest: str = ""
    contents: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Digest of the files of a source, for sources on the machine that plans; empty in a cluster."""


@dataclass(frozen=True)
class Refusal:
    """Why an adaptation cannot be worked on until the spec or the profile changes."""

    reason: str
    message: str
    spec: DomainAdaptationSpec | None = None
    """None when not even the spec is valid."""


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
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The stored status as we would write it."""
    instance: str = ""
    """Operator installation that reconciles; empty for the local run."""
    obstacle: Obstacle | None = None
    """What prevented the creation of a run's objects in this very reconcile."""
    is_local: bool = False
    """Whether it runs on one machine, whose status file may be as long as it is."""
    is_check_due: bool = False
    """Whether it is time to make sure that the objects which live runs use exist."""
    strangers: tuple[RunState, ...] = ()
    """Objects that claim to be runs of this resource and do not count: a backup brought them back, or somebody made
    them. Nothing is read from them."""
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
    def is_suspended(self) -> bool:
        """Whether the spec is known and asks for suspension."""
        return self.desired.spec is not None and self.desired.spec.suspend

    @property
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
    """
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
        desired = replace(desired, contents=contents)
    return Observed(
        now=now,
        owner=owner,
        generation=int(metadata.get("generation", 1)),
        resource_version=str(metadata.get("resourceVersion", "")),
        is_deleting=bool(metadata.get("deletionTimestamp")),
        desired=desired,
        status=status.model,
        written=status.written,
        runs=own,
        strangers=tuple(
            run for run in runs if run.identity.uid == owner.uid and run.object_name not in own_names
        ),
        age_seconds=age_seconds,
        instance=instance,
        is_local=local,
        is_check_due=is_check_due,
    )


def read_desired(
    resource: Manifest, profile: Manifest | None, *, local: bool, default_profiles: tuple[str, ...] = ()
) -> DesiredState | Refusal:
    """Return the spec and its profile, or which of them is missing or wrong."""
    adaptation = read_adaptation(resource, local=local)
    if adaptation.model is None:
        return Refusal(adaptation.reason, adaptation.message)
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
