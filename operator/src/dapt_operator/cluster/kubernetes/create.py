"""Creates objects once, and never over an object that belongs to someone else."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dapt_contract.sentences import shortened
from dapt_operator.api.names import LABEL_UID
from dapt_operator.cluster.errors import NameTakenError
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.errors import ApiError, RequestRefusedError
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.stage_run import MAX_QUOTE_CHARACTERS, Manifest

APPLIED: Final = frozenset({"PersistentVolumeClaim", "Service"})
"""Kinds that are applied server-side; all others are created once."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Created:
    """An object that exists."""

    manifest: Manifest | None
    """As the server holds it; None for a Secret that existed already."""
    is_new: bool
    """Whether it was created now."""


def create(api: ApiServerClient, manifest: Manifest) -> Created:
    """Make an object exist.

    Raises:
        NameTakenError: the name belongs to another owner, or a ConfigMap has other content.
        ApiError: see `errors`.
    """
    kind, metadata = str(manifest["kind"]), manifest["metadata"]
    namespace, name = str(metadata["namespace"]), str(metadata["name"])
    # They live as long as the adaptation, and the profile may change meanwhile; the objects of a run never change.
    if kind in APPLIED:
        return _apply(api, manifest, kind, namespace, name)
    try:
        return Created(api.post(KINDS[kind].collection(namespace), manifest), is_new=True)
    except ApiError as error:
        if not _says_taken(error):
            raise
    if kind == "Secret":
        # The operator may not read Secrets: whose it is the trainer finds out by the digests of our keys.
        return Created(None, is_new=False)
    existing = api.get(KINDS[kind].path(namespace, name))
    if existing is None:
        # It was deleted between the two requests: the next reconcile finds the name free.
        raise NameTakenError(kind, name, "it is being deleted")
    check_owner(existing, manifest)
    # It is immutable and says what another run was started with: the planner takes the next run number.
    if kind == "ConfigMap" and existing.get("data") != manifest.get("data"):
        raise NameTakenError(kind, name, "its content is not what was written", is_ours=True)
    return Created(existing, is_new=False)


def can_create(api: ApiServerClient, manifest: Manifest) -> bool:
    """Return whether an object could be created now: its name is free and nothing refuses it. Nothing is created.

    Raises:
        ApiError: see `errors`.
    """
    path = KINDS[str(manifest["kind"])].collection(str(manifest["metadata"]["namespace"]))
    try:
        api.post(path, manifest, is_dry_run=True)
    except ApiError as error:
        if not _says_taken(error):
            raise
        return False
    return True


def _says_taken(error: ApiError) -> bool:
    """Whether an object of the name exists. A 409 with another reason (Conflict: a quota was updated meanwhile) does
    not say so."""
    return error.status == 409 and error.reason in ("AlreadyExists", "")


def why_refused(error: ApiError, kind: str) -> str:
    """Return why an object will be refused again, in one sentence; empty when the same request may succeed later."""
    # A 404 without a reason comes from the path of the group itself: no such kind is installed.
    if error.status == 404 and kind == "JobSet" and not error.reason:
        return "JobSet is not installed here; install it, or give the profile the launcher IndexedJob"
    return (
        shortened(error.message.strip(), MAX_QUOTE_CHARACTERS)
        if isinstance(error, RequestRefusedError)
        else ""
    )


def check_owner(existing: Manifest, desired: Manifest) -> None:
    """Check that an object of our name is the one that we would create.

    Raises:
        NameTakenError: it is not, or it is being deleted.
    """
    kind, metadata = str(desired["kind"]), existing.get("metadata") or {}
    name = str(desired["metadata"]["name"])
    # By uid: a resource that was created again under its name does not own what its predecessor left.
    our_uids = {str(owner.get("uid")) for owner in desired["metadata"].get("ownerReferences") or []}
    owners = metadata.get("ownerReferences") or []
    is_deleting = bool(metadata.get("deletionTimestamp"))
    if not any(str(owner.get("uid")) in our_uids for owner in owners):
        raise NameTakenError(kind, name, _whose(owners) + (" and is being deleted" if is_deleting else ""))
    if is_deleting:
        raise NameTakenError(kind, name, "it is being deleted, wait until it is gone")


def _whose(owners: Sequence[Manifest]) -> str:
    if not owners:
        return "it has no owner"
    owner = next((item for item in owners if item.get("controller")), owners[0])
    return f"it belongs to {str(owner.get('kind'))[:63]} {str(owner.get('name'))[:253]}"


def _apply(api: ApiServerClient, manifest: Manifest, kind: str, namespace: str, name: str) -> Created:
    path = KINDS[kind].path(namespace, name)
    existing = api.get(path)
    if existing is not None:
        # Before it is applied: applying takes over the fields of an object, whoever made it.
        if not _is_released_claim(existing, manifest):
            check_owner(existing, manifest)
        if _holds(existing, {part: manifest[part] for part in ("metadata", "spec")}):
            return Created(existing, is_new=False)
    try:
        return Created(api.apply(path, manifest), is_new=existing is None)
    except RequestRefusedError as error:
        # Most fields of a claim cannot change once it exists. After a change of the profile's template the existing
        # claim serves as it is.
        existing = api.get(path)
        if error.status != 422 or existing is None:
            raise
        check_owner(existing, manifest)
        _log.warning("%s %s/%s stays as it is: %s", kind, namespace, name, error.message)
        return Created(existing, is_new=False)


def _is_released_claim(existing: Manifest, desired: Manifest) -> bool:
    """Whether a claim of ours was taken from its owner, as people do who want to keep it after the adaptation."""
    metadata = existing.get("metadata") or {}
    uid = desired["metadata"]["labels"][LABEL_UID]
    is_ours = (metadata.get("labels") or {}).get(LABEL_UID) == uid and not metadata.get("deletionTimestamp")
    return desired["kind"] == "PersistentVolumeClaim" and is_ours and not metadata.get("ownerReferences")


def _holds(existing: object, desired: object) -> bool:
    """Whether an object has every value of another one, besides those that the server has filled in."""
    if isinstance(desired, Mapping):
        return isinstance(existing, Mapping) and all(
            name in existing and _holds(existing[name], value) for name, value in desired.items()
        )
    if isinstance(desired, list | tuple):
        return (
            isinstance(existing, list | tuple)
            and len(existing) == len(desired)
            and all(map(_holds, existing, desired))
        )
    return existing == desired
