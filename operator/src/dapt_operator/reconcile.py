"""Observes, decides, applies: the one reconcile that the cluster and the local command share.

The order makes it safe to stop between any two calls. A run that was created and not stored is found again by its name.
A signing key is made the other way round: its digest is stored first, since nobody can ask later whose key it is.
Nothing is deleted that the stored status does not know, nor before what it reported last is stored. Events come last,
since losing one loses nothing.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from dapt_contract.signature import SIGNING_KEY_BYTES, key_digest
from dapt_operator.api.names import signing_secret_name
from dapt_operator.api.v1alpha1.conditions import NAME_TAKEN, REFUSED
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.cluster.errors import CannotCreateError, ConflictError, NameTakenError
from dapt_operator.cluster.port import Cluster, Event, Key, ObjectReference, World
from dapt_operator.last_plans import LastPlans
from dapt_operator.launchers import all_states, orphan_pods
from dapt_operator.launchers.labels import adaptation_labels, owner_references
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.launchers.observe.pod_waiting import stable
from dapt_operator.launchers.render.environment import SIGNING_KEY
from dapt_operator.plan.decide import Plan, decide
from dapt_operator.plan.desired import object_names
from dapt_operator.plan.observed import Observed, Obstacle, observe
from dapt_operator.stage_run import Manifest, Owner

MAX_CONFLICTS: Final = 5
MAX_PASSED_OVER: Final = 3
DEFAULT_LAUNCHER: Final = "IndexedJob"


def reconcile(
    cluster: Cluster,
    key: Key,
    launchers: Mapping[str, Launcher],
    *,
    local: bool = True,
    instance: str = "",
    last_plans: LastPlans | None = None,
) -> Plan:
    """Bring one adaptation a step further, and return the plan that was carried out. Doing it twice is doing it once.

    Args:
        cluster: the port to the world.
        key: which adaptation.
        launchers: by the name that profiles use.
        local: whether stages run where `file://` sources lie.
        instance: operator installation that reconciles; adaptations of another one are left alone. Empty: the local
            run.
        last_plans: what was decided before, which is decided again only where something has changed; None: always.

    Raises:
        ConflictError: the resource was written between each observation and our write; try again later.
    """
    for _ in range(MAX_CONFLICTS - 1):
        try:
            return _observe_and_act(cluster, key, launchers, local, instance, last_plans)
        except ConflictError:
            continue  # somebody wrote the resource since it was observed: decide again on the new one
    return _observe_and_act(cluster, key, launchers, local, instance, last_plans)


def _observe_and_act(
    cluster: Cluster,
    key: Key,
    launchers: Mapping[str, Launcher],
    local: bool,
    instance: str,
    last_plans: LastPlans | None,
) -> Plan:
    launcher = launchers[DEFAULT_LAUNCHER]
    world = cluster.observe(key)
    if last_plans is not None and (known := last_plans.find(key, world)) is not None:
        return known

    def understand(world: World) -> Observed | None:
        nonlocal launcher
        if world.resource is None:
            return None
        launcher = _launcher(world, launchers)
        return observe(
            world.resource,
            world.profile,
            all_states(world.children, world.now, launchers),
            world.now,
            local=local,
            instance=instance,
            default_profiles=world.default_profiles,
            contents=world.contents,
            is_check_due=world.is_check_due,
            keeps_ended_runs=world.keeps_ended_runs,
            orphans=orphan_pods(world.children),
        )

    observed = understand(world)
    if observed is None:
        return Plan()
    plan = _act(cluster, key, observed, launcher, lambda: understand(cluster.observe(key)))
    if last_plans is not None:
        last_plans.note(key, world, plan)
    return plan


def _act(
    cluster: Cluster, key: Key, observed: Observed, launcher: Launcher, look: Callable[[], Observed | None]
) -> Plan:
    """Carry a plan out. When an object cannot be created, decide again with that known: another run number is taken,
    or the status reports that user action is required. The same when an object was gone: an Event reports it."""
    has_made_key = False
    while True:
        plan = decide(observed, launcher)
        try:
            recreated = _make_sure(cluster, key, observed, plan)
            is_key_missing = not has_made_key and _is_key_missing(cluster, key, observed, plan)
            if is_key_missing and not recreated and plan.apply:
                plan, observed = _make_key(cluster, key, observed, launcher, look)
                if plan.starts_before_key:
                    return plan
                has_made_key = True
                continue
        except (NameTakenError, CannotCreateError) as refusal:
            observed = _after_refusal(observed, plan, refusal)
            continue
        if recreated:
            observed = replace(observed, recreated=(*observed.recreated, *recreated))
            continue
        if is_key_missing:
            # The pods that wait for it know the digests of earlier keys alone, so their run is replaced.
            observed = replace(observed, is_signing_key_lost=True)
            continue
        try:
            _carry_out(cluster, key, observed, plan)
        except (NameTakenError, CannotCreateError) as refusal:
            observed = _after_refusal(observed, plan, refusal)
            continue
        return plan


def _after_refusal(observed: Observed, plan: Plan, refusal: NameTakenError | CannotCreateError) -> Observed:
    """Return what is known once an object could not be created: the next run number, or what stands in the way."""
    is_run_of_ours = isinstance(refusal, NameTakenError) and refusal.is_ours and bool(plan.apply)
    if is_run_of_ours and observed.num_passed_over < MAX_PASSED_OVER:
        return replace(observed, num_passed_over=observed.num_passed_over + 1)
    return replace(observed, obstacle=_obstacle(refusal))


def _is_key_missing(cluster: Cluster, key: Key, observed: Observed, plan: Plan) -> bool:
    """Return whether the signing Secret does not exist and a run needs it.

    Raises:
        NameTakenError: it exists although no key was ever made.
        CannotCreateError: the cluster would refuse it.
    """
    if not plan.needs_signing_secret:
        return False
    manifest = signing_secret(observed.owner, bytes(SIGNING_KEY_BYTES))
    if cluster.can_create(key, manifest):
        return True
    ledger = observed.status.ledger or Ledger()
    # Of an adaptation that an older version began, or whose status was lost, the digest is not known.
    if not ledger.signing_keys and ledger.shared is None and not observed.runs:
        why = "no key was made for it yet"
        raise NameTakenError("Secret", str(manifest["metadata"]["name"]), why)
    return False


def _make_key(
    cluster: Cluster,
    key: Key,
    observed: Observed,
    launcher: Launcher,
    look: Callable[[], Observed | None],
) -> tuple[Plan, Observed]:
    """Make a signing key, after the status has its digest; return the plan of that, carried out, and what is observed
    then.

    Raises:
        ConflictError: the status was written by somebody else, or the resource is gone.
        NameTakenError: the name of an object belongs to somebody else.
        CannotCreateError: the cluster refuses the Secret, or does not store the digest.
    """
    token = secrets.token_bytes(SIGNING_KEY_BYTES)
    digest = key_digest(token)
    plan = decide(replace(observed, new_key_digest=digest), launcher)
    _carry_out(cluster, key, observed, plan)
    stored = look()
    if stored is None:
        raise ConflictError(f"DomainAdaptation {key.name} was deleted")
    manifest = signing_secret(observed.owner, token)
    if digest not in (stored.status.ledger or Ledger()).signing_keys:
        why = "the status does not keep the digest of its key; upgrade the CustomResourceDefinitions of dapt"
        raise CannotCreateError("Secret", str(manifest["metadata"]["name"]), why)
    # Somebody may have taken the name since it was free: the pods then find a key that is not among the digests.
    is_new = cluster.apply(key, manifest)
    ledger = observed.status.ledger or Ledger()
    # The Secret is made with the first objects that all runs share.
    made_again = object_names([manifest]) if is_new and ledger.shared is not None else ()
    return plan, replace(
        stored,
        recreated=made_again,  # the others were reported with that status
        is_check_due=observed.is_check_due,
        num_passed_over=observed.num_passed_over,
    )


def _obstacle(error: NameTakenError | CannotCreateError) -> Obstacle:
    if isinstance(error, NameTakenError):
        return Obstacle(NAME_TAKEN, f"{error}; remove it, then this continues by itself")
    # What others use of a quota and the ids of requests change each time; the condition would be written each time.
    refusal = stable(str(error)).rstrip(".")
    return Obstacle(REFUSED, f"{refusal}; once it is allowed, this continues by itself")


def _make_sure(cluster: Cluster, key: Key, observed: Observed, plan: Plan) -> tuple[str, ...]:
    """Create what must exist and does not; return what was there before, as KIND/NAME."""
    ledger = observed.status.ledger or Ledger()
    created = [manifest for manifest in plan.must_exist if cluster.apply(key, manifest)]
    return tuple(
        name
        for manifest, name in zip(created, object_names(created), strict=True)
        # A stage file is created with its run.
        if name in ledger.made or (manifest["kind"] == "ConfigMap" and ledger.shared is not None)
    )


def _launcher(world: World, launchers: Mapping[str, Launcher]) -> Launcher:
    name = ((world.profile or {}).get("spec") or {}).get("launcher", DEFAULT_LAUNCHER)
    # An unknown name makes the profile invalid, which the planner reports; until then any launcher reads the children.
    return launchers.get(name, launchers[DEFAULT_LAUNCHER])


def _carry_out(cluster: Cluster, key: Key, observed: Observed, plan: Plan) -> None:
    # The order makes it safe to stop between any two calls: see the module.
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
    """Return the Secret with the key of the checkpoints' signatures; it is created once, so a later token has no
    effect."""
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
