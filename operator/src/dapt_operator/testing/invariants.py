"""What a planner must never do, for the cluster in memory: each refusal names an impossible world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.v1alpha1.conditions import CONDITION_TYPES, PHASES, REASONS
from dapt_operator.launchers.labels import identity_of
from dapt_operator.stage_run import Manifest
from dapt_operator.testing.objects import GANGS, is_alive, may_run

SUCCESS = ("Complete", "Completed")
"""Condition of a Job, and of a JobSet, that has succeeded."""


class ImpossibleWorldError(AssertionError):
    """The planner did what it must never do."""


def identity(job: Manifest) -> RunIdentity:
    """Whose Job it is.

    Raises:
        ImpossibleWorldError: nobody's.
    """
    found = identity_of(job)
    if found is None:
        raise ImpossibleWorldError("a Job without an identity")
    return found


def key_of(job: Manifest) -> str:
    """Run key of a Job."""
    return identity(job).key


def check_new_job(
    resource: Mapping[str, Any],
    objects: Sequence[Mapping[str, Any]],
    job: Manifest,
    created: Sequence[str],
    evaluations: int = 1,
) -> None:
    """A new Job is of this resource, was never there, has the largest fence, and nothing runs beside it but what may:
    evaluations beside pretraining, blends and each other.

    Args:
        resource: the DomainAdaptation as stored.
        objects: all its children.
        job: the new one.
        created: keys of all runs ever created.
        evaluations: so many may run at once.

    Raises:
        ImpossibleWorldError: it does not.
    """
    new = identity(job)
    if new.uid != resource["metadata"]["uid"]:
        raise ImpossibleWorldError("a Job of another resource")
    if new.key in created:
        raise ImpossibleWorldError(f"the run {new.lineage} try {new.try_number} was created twice")
    if finished := condition(resource.get("status"), "Finished"):
        raise ImpossibleWorldError(f"a run was created after the end ({finished})")
    if resource["spec"].get("suspend"):
        raise ImpossibleWorldError("a run was created while suspended")
    decided = ((resource.get("status") or {}).get("ledger") or {}).get("attempts", [])
    if new.attempt > 1 + len(decided):
        raise ImpossibleWorldError(f"{new.lineage} was created before attempt {new.attempt} was written down")
    beside = []
    for other in objects:
        if other["kind"] not in GANGS:
            continue
        known = identity(other)
        if known.uid == new.uid and known.fence >= new.fence:
            raise ImpossibleWorldError(f"fence {new.fence} is not above {known.fence}")
        if may_run(other, _pods_of(other, objects)):
            beside.append(known)
            if known.lineage == new.lineage or not _may_meet(known.stage, new.stage):
                raise ImpossibleWorldError(f"{new.lineage} was created beside {other['metadata']['name']}")
    if sum(known.stage == "evaluate" for known in (*beside, new)) > max(1, evaluations):
        raise ImpossibleWorldError(f"{new.lineage} is one evaluation more than {evaluations} at once")


def _may_meet(one: str, other: str) -> bool:
    """Whether two stages may run at the same time."""
    return "evaluate" in (one, other) and {one, other} <= {"evaluate", "pretrain", "blend"}


def _pods_of(gang: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    name = gang["metadata"]["name"]
    pods = (item for item in objects if item["kind"] == "Pod")
    return [pod for pod in pods if pod["metadata"]["name"].rpartition("-")[0] == name]


def check_deletion(
    resource: Mapping[str, Any], job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Nothing is deleted twice, nor before the stored status knows it and, when it has ended, how.

    Raises:
        ImpossibleWorldError: it is.
    """
    gone, name = identity(job), job["metadata"]["name"]
    if job["metadata"].get("deletionTimestamp"):
        raise ImpossibleWorldError(f"{name} was deleted twice")
    known = (resource.get("status") or {}).get("ledger", {}).get("runs", [])
    if not any(run["fence"] >= gone.fence for run in known):
        raise ImpossibleWorldError(f"{name} was deleted before the status knew it")
    succeeded = any(item["type"] in SUCCESS for item in job["status"].get("conditions", []))
    if succeeded and not any(run["fence"] == gone.fence and run["state"] == "Succeeded" for run in known):
        raise ImpossibleWorldError(f"{name} was deleted before its result was written")
    failed = any(pod["status"].get("phase") == "Failed" for pod in pods)
    if failed and any(run["fence"] == gone.fence and run["state"] == "Open" for run in known):
        raise ImpossibleWorldError(f"{name} was deleted before the cause of its failure was written")


def check_pod_deletion(
    pod: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], grace_seconds: int | None
) -> None:
    """Only a pod whose peer has failed is deleted by itself, and at once.

    Raises:
        ImpossibleWorldError: another one is.
    """
    name = pod["metadata"]["name"]
    if not is_alive(pod) or not any(peer["status"].get("phase") == "Failed" for peer in pods):
        raise ImpossibleWorldError(f"pod {name} was deleted although no peer of it has failed")
    if grace_seconds != 0:
        raise ImpossibleWorldError(f"pod {name} was deleted with a grace period: it would wait in vain")


def check_history(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """What is terminal stays terminal, numbers only rise, nothing is forgotten, and the status stays small.

    Raises:
        ImpossibleWorldError: it does not.
    """
    if (ended := condition(before, "Finished")) and condition(after, "Finished") != ended:
        raise ImpossibleWorldError(f"Finished {ended} was taken back")
    old = {
        (r["stage"], r["attempt"], r.get("candidate")): r for r in before.get("ledger", {}).get("runs", [])
    }
    new = {(r["stage"], r["attempt"], r.get("candidate")): r for r in after.get("ledger", {}).get("runs", [])}
    for lineage, record in old.items():
        if lineage not in new:
            if record["state"] != "Open" and _is_closed(lineage, record, after):
                continue
            raise ImpossibleWorldError(f"{lineage} was forgotten")
        if new[lineage]["try"] < record["try"]:
            raise ImpossibleWorldError(f"try of {lineage} fell")
        if record["state"] == "Succeeded" and new[lineage] != record:
            raise ImpossibleWorldError(f"{lineage} succeeded and was changed")
        if record["state"] == "Failed" and new[lineage]["try"] == record["try"] and new[lineage] != record:
            raise ImpossibleWorldError(f"{lineage} failed and was changed within one try")
    begun = before.get("ledger", {}).get("attempts", [])
    if after.get("ledger", {}).get("attempts", [])[: len(begun)] != begun:
        raise ImpossibleWorldError("an attempt that was decided on was changed")
    if after.get("ledger", {}).get("fence", 0) < before.get("ledger", {}).get("fence", 0):
        raise ImpossibleWorldError("the fence fell")
    if len(str(after)) > 256 * 1024:
        raise ImpossibleWorldError("the status is larger than 256 KiB")


def _is_closed(
    lineage: tuple[str, int, str | None], record: Mapping[str, Any], after: Mapping[str, Any]
) -> bool:
    """Whether the ledger tells of a record that was let go."""
    stage, attempt, candidate = lineage
    closed = (after.get("ledger", {}).get("closed") or {}).get("lineages", [])
    return f"{stage} {attempt} {candidate or ''} {record['try']}" in closed


def check_conditions(before: Mapping[str, Any], after: Mapping[str, Any], generation: int) -> None:
    """What kstatus reads never contradicts itself, and is about the spec that is there.

    kstatus: an observed generation that lags, or Reconciling, means in progress; Stalled means failed; Ready means
    current. So the two first exclude each other, and both exclude the third.

    Raises:
        ImpossibleWorldError: it does.
    """
    found = {one["type"]: one for one in after.get("conditions", [])}
    if list(found) != list(CONDITION_TYPES):
        raise ImpossibleWorldError(f"conditions are {', '.join(found)}")
    old = {one["type"]: one for one in before.get("conditions", [])}
    for one in (after, *found.values()):
        if one.get("observedGeneration") != generation:
            raise ImpossibleWorldError(
                f"{one.get('type', 'the status')} is not about generation {generation}"
            )
    for type_, one in found.items():
        known = old.get(type_, one)
        if known["status"] == one["status"] and known["lastTransitionTime"] != one["lastTransitionTime"]:
            raise ImpossibleWorldError(f"{type_} moved its transition time and not its status")
        if not one.get("message") or one["reason"] not in REASONS:
            raise ImpossibleWorldError(f"{type_} says {one['reason']}: {one.get('message')!r}")
    true = {type_ for type_, one in found.items() if one["status"] == "True"}
    if len(true & {"Ready", "Reconciling", "Stalled"}) > 1:
        raise ImpossibleWorldError(f"{sorted(true)} hold at once")
    if "Ready" in true and "Finished" not in true:
        raise ImpossibleWorldError("Ready and not Finished")
    if not true & {"Ready", "Reconciling", "Stalled", "Suspended"}:
        raise ImpossibleWorldError("nothing goes on and nobody is told why")
    if after.get("phase") not in PHASES:
        raise ImpossibleWorldError(f"phase {after.get('phase')}")


def condition(status: Mapping[str, Any] | None, type_: str) -> str:
    """The reason of a condition that is True, else nothing."""
    for one in (status or {}).get("conditions", []):
        if one["type"] == type_ and one["status"] == "True":
            return str(one["reason"])
    return ""
