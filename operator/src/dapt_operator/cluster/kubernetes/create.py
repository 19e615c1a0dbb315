"""Making objects exist: once, and never over somebody else's."""

from __future__ import annotations

import logging
from typing import Any

from dapt_operator.cluster.kubernetes.client import Api
from dapt_operator.cluster.kubernetes.errors import ApiError, RequestRefusedError
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.port import NameTakenError
from dapt_operator.stage_run import Manifest

APPLIED = frozenset({"PersistentVolumeClaim", "Service"})
"""Kinds that are applied server-side; all others are created once."""
MAX_SENTENCE = 1000
"""Of what the API server says; a webhook may say any amount."""
_log = logging.getLogger(__name__)


def create(api: Api, manifest: Manifest) -> Manifest | None:
    """Make an object exist; returns it as the server holds it, None when that is not known (a Secret that exists).

    Raises:
        NameTaken: the name belongs to another owner, or a ConfigMap holds something else.
        ApiError: see `errors`.
    """
    kind, metadata = str(manifest["kind"]), manifest["metadata"]
    namespace, name = str(metadata["namespace"]), str(metadata["name"])
    if kind in APPLIED:
        return _apply(api, manifest, kind, namespace, name)
    made: Manifest
    try:
        made = api.post(KINDS[kind].collection(namespace), manifest)
        return made
    except ApiError as error:
        if error.status != 409 or error.reason not in ("AlreadyExists", ""):
            raise
    if kind == "Secret":
        return None  # no right to read Secrets; its name has the resource's uid
    found = api.get(KINDS[kind].path(namespace, name))
    if found is None:
        # Deleted just now: the next reconcile finds the name free.
        raise NameTakenError(kind, name, "it is being deleted")
    check_owner(found, manifest)
    if kind == "ConfigMap" and found.get("data") != manifest.get("data"):
        raise NameTakenError(kind, name, "its content is not what was written", ours=True)
    result: Manifest = found
    return result


def why_refused(error: ApiError, kind: str) -> str:
    """Why an object will be refused again, in a sentence; empty when the same request may succeed later."""
    if (
        error.status == 404 and kind == "JobSet" and not error.reason
    ):  # the group's address itself is not there
        return "JobSet is not installed here; install it, or give the profile the launcher IndexedJob"
    return error.message[:MAX_SENTENCE].strip() if isinstance(error, RequestRefusedError) else ""


def check_owner(found: Manifest, wanted: Manifest) -> None:
    """Whether an object of our name is the one we would make.

    Raises:
        NameTaken: it is not.
    """
    kind, metadata = str(wanted["kind"]), found.get("metadata") or {}
    name = str(wanted["metadata"]["name"])
    ours = {str(owner.get("uid")) for owner in wanted["metadata"].get("ownerReferences") or []}
    owners = metadata.get("ownerReferences") or []
    deleting = bool(metadata.get("deletionTimestamp"))
    if not any(str(owner.get("uid")) in ours for owner in owners):
        raise NameTakenError(kind, name, _whose(owners) + (" and is being deleted" if deleting else ""))
    if deleting:
        raise NameTakenError(kind, name, "it is being deleted, wait until it is gone")


def _whose(owners: list[Any]) -> str:
    if not owners:
        return "it belongs to nobody"
    owner = next((item for item in owners if item.get("controller")), owners[0])
    return f"it belongs to {str(owner.get('kind'))[:63]} {str(owner.get('name'))[:253]}"


def _apply(api: Api, manifest: Manifest, kind: str, namespace: str, name: str) -> Manifest:
    path = KINDS[kind].path(namespace, name)
    made: Manifest
    try:
        made = api.apply(path, manifest)
        return made
    except RequestRefusedError as error:
        # What a template of the profile says of a claim cannot be changed once it is there. It serves as it is.
        found = api.get(path)
        if error.status != 422 or found is None:
            raise
        check_owner(found, manifest)
        _log.warning("%s %s/%s stays as it is: %s", kind, namespace, name, error.message)
        made = found
        return made
