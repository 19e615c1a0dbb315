"""Observe, decide, apply: the one loop body that the cluster and the local command share.

The order makes it safe to stop between any two calls: a run that was created and not written down is found again by
its name; nothing is deleted that the stored status does not know, nor before what it said last is written there; events
come last, since losing one loses nothing.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import replace

from dapt_operator.api.names import signing_secret_name
from dapt_operator.api.v1alpha1.conditions import NAME_TAKEN, REFUSED
from dapt_operator.cluster.errors import CannotCreateError, ConflictError, NameTakenError
from dapt_operator.cluster.port import Cluster, Event, Key, ObjectReference, World
from dapt_operator.launchers import all_states
from dapt_operator.launchers.labels import adaptation_labels, owner_references
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.launchers.render.environment import SIGNING_KEY
from dapt_operator.plan.decide import Plan, decide
from dapt_operator.plan.observed import Observed, Obstacle, observe
from dapt_operator.stage_run import Manifest, Owner

MAX_CONFLICTS = 5
MAX_PASSED_OVER = 3
DEFAULT_LAUNCHER = "IndexedJob"


def reconcile(
    cluster: Cluster, key: Key, launchers: Mapping[str, Launcher], *, local: bool = True, instance: str = ""
) -> Plan:
    """Bring one adaptation a step further. Doing it twice is doing it once.

    Args:
        cluster: the port to the world.
        key: which adaptation.
        launchers: by the name that profiles use.
        local: whether stages run where `file://` sources lie.
        instance: which operator installation this is; another one's adaptations are left alone. Empty: the local run.

    Raises:
        Conflict: someone kept writing the resource; try again later.
    """
    for attempt in range(MAX_CONFLICTS):
        world = cluster.observe(key)
        if world.resource is None:
            return Plan()
        launcher = _launcher(world, launchers)
        observed = _observed(world, launchers, local, instance)
        try:
            return _act(cluster, key, observed, launcher)
        except ConflictError:
            if attempt == MAX_CONFLICTS - 1:
                raise
    raise AssertionError("unreachable")


def _act(cluster: Cluster, key: Key, observed: Observed, launcher: Launcher) -> Plan:
    """Carry a plan out; when an object cannot be made, the one that knows it: another number, or a person."""
    while True:
        plan = decide(observed, launcher)
        try:
            _carry_out(cluster, key, observed, plan)
        except NameTakenError as taken:
            if taken.is_ours and observed.passed_over < MAX_PASSED_OVER:
                observed = replace(observed, passed_over=observed.passed_over + 1)
            else:
                message = f"{taken}; remove it, then this goes on by itself"
                observed = replace(observed, obstacle=Obstacle(NAME_TAKEN, message))
            continue
        except CannotCreateError as refusal:
            message = f"{str(refusal).rstrip('.')}; once it is allowed, this goes on by itself"
            observed = replace(observed, obstacle=Obstacle(REFUSED, message))
            continue
        return plan


def _observed(world: World, launchers: Mapping[str, Launcher], local: bool, instance: str) -> Observed:
    assert world.resource is not None
    return observe(
        world.resource,
        world.profile,
        all_states(world.children, world.now, launchers),
        world.now,
        local=local,
        instance=instance,
        default_profiles=world.default_profiles,
    )


def _launcher(world: World, launchers: Mapping[str, Launcher]) -> Launcher:
    wanted = ((world.profile or {}).get("spec") or {}).get("launcher", DEFAULT_LAUNCHER)
    return launchers.get(wanted, launchers[DEFAULT_LAUNCHER])


def _carry_out(cluster: Cluster, key: Key, observed: Observed, plan: Plan) -> None:
    if plan.needs_signing_secret:
        cluster.apply(key, signing_secret(observed.owner, secrets.token_bytes(32)))
    for manifest in plan.apply:
        cluster.apply(key, manifest)
    if plan.deletes_first:
        _delete(cluster, key, plan)
    if plan.status is not None:
        cluster.write_status(key, plan.status.to_dict(), observed.resource_version)
    if not plan.deletes_first:
        _delete(cluster, key, plan)
    for notice in plan.events:
        cluster.record(key, Event(notice.type, notice.reason, notice.message))


def _delete(cluster: Cluster, key: Key, plan: Plan) -> None:
    for removal in plan.delete:
        cluster.delete(key, ObjectReference(removal.kind, removal.name, removal.grace_seconds))


def signing_secret(owner: Owner, token: bytes) -> Manifest:
    """The Secret with the key of the checkpoints' signatures; created once, so a later token has no effect."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": signing_secret_name(owner.name, owner.uid),
            "namespace": owner.namespace,
            "labels": adaptation_labels(owner),
            "ownerReferences": owner_references(owner),
        },
        "type": "Opaque",
        "data": {SIGNING_KEY: base64.b64encode(token).decode()},
    }
