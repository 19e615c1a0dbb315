"""Checks what a planner must never do; the cluster in memory calls these checks at each verb."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.v1alpha1.conditions import CONDITION_TYPES, PHASES, REASONS
from dapt_operator.launchers.labels import identity_of
from dapt_operator.launchers.observe.containers import has_ended, is_over, phase_of
from dapt_operator.stage_run import HOLDER_KINDS, Manifest
from dapt_operator.testing.objects import may_run

Lineage = tuple[str, int, str | None]
"""Stage, attempt, candidate."""

SUCCESS: Final = ("Complete", "Completed")
"""Condition of a Job, and of a JobSet, that has succeeded."""
MAX_STATUS_CHARACTERS: Final = 256 * 1024


class ImpossibleWorldError(AssertionError):
    """The planner did what it must never do."""


def identity(job: Manifest) -> RunIdentity:
    """Return the run that a Job belongs to.

    Raises:
        ImpossibleWorldError: it belongs to none.
    """
    run = identity_of(job)
    if run is None:
        raise ImpossibleWorldError("a Job without an identity")
    return run


def key_of(job: Manifest) -> str:
    """Return the run key of a Job."""
    return identity(job).key


def check_new_job(
    resource: Manifest,
    objects: Sequence[Manifest],
    job: Manifest,
    created: Sequence[str],
    max_evaluations: int = 1,
) -> None:
    """Check that a new Job belongs to the resource, is new, has the largest fence, and runs next to no other run.

    Only evaluations may run in parallel: to pretraining, to blends and to each other.

    Args:
        resource: the DomainAdaptation as stored.
        objects: all its children.
        job: the new Job.
        created: keys of all runs ever created.
        max_evaluations: number of evaluations that may run at the same time.

    Raises:
        ImpossibleWorldError: the Job breaks one of these rules.
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
        raise ImpossibleWorldError(f"{new.lineage} was created before the ledger had attempt {new.attempt}")
    live_runs = []
    for other in objects:
        if other["kind"] not in HOLDER_KINDS:
            continue
        run = identity(other)
        if run.uid == new.uid and run.fence >= new.fence:
            raise ImpossibleWorldError(f"fence {new.fence} is not above {run.fence}")
        if may_run(other, _pods_of(other, objects)):
            live_runs.append(run)
            if run.lineage == new.lineage or not _may_overlap(run.stage, new.stage):
                raise ImpossibleWorldError(
                    f"{new.lineage} was created while {other['metadata']['name']} was live"
                )
    num_evaluations = sum(run.stage == "evaluate" for run in (*live_runs, new))
    if num_evaluations > max(1, max_evaluations):
        raise ImpossibleWorldError(
            f"{new.lineage} is evaluation {num_evaluations} at the same time, over the limit of {max_evaluations}"
        )


def of_ours(objects: Mapping[tuple[str, str], Manifest], created: Collection[str]) -> list[Manifest]:
    """Return an adaptation's objects without Jobs that somebody else has made under its labels: those give no rule."""
    return [
        item for (kind, _), item in objects.items() if kind not in HOLDER_KINDS or key_of(item) in created
    ]


def _may_overlap(stage: str, other_stage: str) -> bool:
    """Whether two stages may run at the same time."""
    stages = {stage, other_stage}
    return "evaluate" in stages and stages <= {"evaluate", "pretrain", "blend"}


def _pods_of(gang: Manifest, objects: Sequence[Manifest]) -> list[Manifest]:
    name = gang["metadata"]["name"]
    pods = (item for item in objects if item["kind"] == "Pod")
    return [pod for pod in pods if pod["metadata"]["name"].rpartition("-")[0] == name]


def check_deletion(resource: Manifest, job: Manifest, pods: Sequence[Manifest] = ()) -> None:
    """Check that a Job is deleted once, and only when the stored status has its run and, if it has ended, its end.

    After the end of the adaptation, or of the resource, no report matters any more.

    Raises:
        ImpossibleWorldError: the deletion breaks one of these rules.
    """
    deleted, name = identity(job), job["metadata"]["name"]
    if job["metadata"].get("deletionTimestamp"):
        raise ImpossibleWorldError(f"{name} was deleted twice")
    if resource["metadata"].get("deletionTimestamp") or condition(resource.get("status"), "Finished"):
        return
    runs = (resource.get("status") or {}).get("ledger", {}).get("runs", [])
    if not any(run["fence"] >= deleted.fence for run in runs):
        raise ImpossibleWorldError(f"{name} was deleted before the status had its run")
    phases = [phase_of(pod["status"]) for pod in pods]
    is_complete = any(item["type"] in SUCCESS for item in job["status"].get("conditions", []))
    succeeded = is_complete or (bool(phases) and all(phase == "Succeeded" for phase in phases))
    # Pods that have succeeded and left no report are a failure in the ledger: what they did is not known.
    good = {"Succeeded"} if not pods or any(map(_has_report, pods)) else {"Succeeded", "Failed"}
    is_written = any(run["fence"] == deleted.fence and run["state"] in good for run in runs)
    if succeeded and not is_written and not _is_replaced(deleted, resource["status"]):
        raise ImpossibleWorldError(f"{name} was deleted before its result was written")
    failed = "Failed" in phases
    if failed and any(run["fence"] == deleted.fence and run["state"] == "Open" for run in runs):
        raise ImpossibleWorldError(f"{name} was deleted before the cause of its failure was written")


def _has_report(pod: Manifest) -> bool:
    states = (item.get("state") or {} for item in pod["status"].get("containerStatuses") or ())
    return any((state.get("terminated") or {}).get("message") for state in states)


def _is_replaced(run: RunIdentity, status: Manifest) -> bool:
    """Whether the ledger has a newer run of the same work, has discarded this one, or has dropped the record."""
    record = _records(status).get((run.stage, run.attempt, run.candidate))
    if record is not None:
        is_discarded = record["state"] == "Failed" and record.get("cause") == "Stopped"
        return bool(record["try"] > run.try_number or (record["try"] == run.try_number and is_discarded))
    lines = (status.get("ledger", {}).get("closed") or {}).get("lineages", [])
    work = f"{run.stage} {run.attempt} {run.candidate or ''} "
    return any(line.startswith(work) and int(line[len(work) :]) >= run.try_number for line in lines)


def check_pod_deletion(pod: Manifest, pods: Sequence[Manifest], grace_seconds: int | None) -> None:
    """Check that a single pod is deleted only when a peer of it has failed, and without a grace period.

    A pod of which only other containers than the trainer are left, and one that no Job owns, may be deleted too.

    Raises:
        ImpossibleWorldError: the deletion breaks one of these rules.
    """
    name = pod["metadata"]["name"]
    if (has_ended(pod) and not is_over(pod)) or not pod["metadata"]["ownerReferences"]:
        return
    if has_ended(pod) or not any(phase_of(peer["status"]) == "Failed" for peer in pods):
        raise ImpossibleWorldError(f"pod {name} was deleted although no peer of it has failed")
    if grace_seconds != 0:
        raise ImpossibleWorldError(f"pod {name} was deleted with a grace period: it would wait in vain")


def check_history(before: Manifest, after: Manifest) -> None:
    """Check that a final state stays, numbers only rise, no record is lost, and the status stays small.

    Raises:
        ImpossibleWorldError: the new status breaks one of these rules.
    """
    if (ended := condition(before, "Finished")) and condition(after, "Finished") != ended:
        raise ImpossibleWorldError(f"Finished {ended} was taken back")
    old, new = _records(before), _records(after)
    for lineage, record in old.items():
        if lineage not in new:
            if record["state"] != "Open" and _is_closed(lineage, record, after):
                continue
            raise ImpossibleWorldError(f"the record of {lineage} is lost")
        if new[lineage]["try"] < record["try"]:
            raise ImpossibleWorldError(f"the try of {lineage} decreased")
        if (
            record["state"] == "Succeeded"
            and new[lineage] != record
            and not _is_redone(record, new[lineage], old)
        ):
            raise ImpossibleWorldError(f"{lineage} succeeded and was changed")
        is_same_try = record["state"] == "Failed" and new[lineage]["try"] == record["try"]
        if is_same_try and new[lineage] not in (record, _counted_to_its_end(record, new[lineage])):
            raise ImpossibleWorldError(f"{lineage} failed and was changed without a new try")
    old_attempts = before.get("ledger", {}).get("attempts", [])
    if after.get("ledger", {}).get("attempts", [])[: len(old_attempts)] != old_attempts:
        raise ImpossibleWorldError("an attempt that was decided on was changed")
    if after.get("ledger", {}).get("fence", 0) < before.get("ledger", {}).get("fence", 0):
        raise ImpossibleWorldError("the fence decreased")
    if len(str(after)) > MAX_STATUS_CHARACTERS:
        raise ImpossibleWorldError("the status is larger than 256 KiB")


def _counted_to_its_end(record: Manifest, new: Manifest) -> Manifest:
    """Return a record whose run was given up alive, with the cost that another has, where that is not less."""
    costs = ("acceleratorSeconds", "heldSeconds")
    if "ranSeconds" not in record or any(new.get(name, 0.0) < record.get(name, 0.0) for name in costs):
        return record
    kept = {name: value for name, value in record.items() if name != "ranSeconds"}
    return kept | {name: new[name] for name in costs if name in new}


def _is_redone(record: Manifest, newer: Manifest, records: Mapping[Lineage, Manifest]) -> bool:
    """Whether work that succeeded is done again in a new run because its inputs were edited since.

    Prepare is, until the base model's measurement has started, and publish, whose end is known before the edit is.
    """
    has_new_run = newer["try"] > record["try"] and newer.get("expects") != record.get("expects")
    is_measured = any(
        stage == "baseline" and not other.get("discarded") for (stage, _, _), other in records.items()
    )
    return has_new_run and (
        record["stage"] == "publish" or (record["stage"] == "prepare" and not is_measured)
    )


def _records(status: Manifest) -> dict[Lineage, Manifest]:
    runs: Sequence[Manifest] = status.get("ledger", {}).get("runs", [])
    return {(run["stage"], run["attempt"], run.get("candidate")): run for run in runs}


def _is_closed(lineage: Lineage, record: Manifest, after: Manifest) -> bool:
    """Whether the ledger lists a dropped record as closed."""
    stage, attempt, candidate = lineage
    closed = (after.get("ledger", {}).get("closed") or {}).get("lineages", [])
    return f"{stage} {attempt} {candidate or ''} {record['try']}" in closed


def check_conditions(before: Manifest, after: Manifest, generation: int) -> None:
    """Check that what kstatus reads is consistent, and describes the current generation of the spec.

    kstatus: an observed generation that lags, or Reconciling, means in progress; Stalled means failed; Ready means
    current. So these three conditions exclude each other.

    Raises:
        ImpossibleWorldError: the conditions break one of these rules.
    """
    conditions = {item["type"]: item for item in after.get("conditions", [])}
    if list(conditions) != list(CONDITION_TYPES):
        raise ImpossibleWorldError(f"conditions are {', '.join(conditions)}")
    old_conditions = {item["type"]: item for item in before.get("conditions", [])}
    for item in (after, *conditions.values()):
        if item.get("observedGeneration") != generation:
            raise ImpossibleWorldError(
                f"{item.get('type', 'the status')} is not about generation {generation}"
            )
    for type_, item in conditions.items():
        old = old_conditions.get(type_, item)
        if old["status"] == item["status"] and old["lastTransitionTime"] != item["lastTransitionTime"]:
            raise ImpossibleWorldError(f"{type_} changed its transition time and not its status")
        if not item.get("message") or item["reason"] not in REASONS:
            raise ImpossibleWorldError(
                f"{type_} has reason {item['reason']!r} and message {item.get('message')!r}"
            )
    true = {type_ for type_, item in conditions.items() if item["status"] == "True"}
    if len(true & {"Ready", "Reconciling", "Stalled"}) > 1:
        raise ImpossibleWorldError(f"{sorted(true)} are True at once")
    if "Ready" in true and "Finished" not in true:
        raise ImpossibleWorldError("Ready is True and Finished is not")
    if not true & {"Ready", "Reconciling", "Stalled", "Suspended"}:
        raise ImpossibleWorldError("no condition says why nothing runs")
    if after.get("phase") not in PHASES:
        raise ImpossibleWorldError(f"phase {after.get('phase')!r} is not in the table")


def check_end(before: Manifest, after: Manifest, live: Sequence[Manifest]) -> None:
    """Check that nothing may run any more, or is about to stop, when the end is written.

    Args:
        before: the stored status.
        after: the new one.
        live: Jobs and JobSets whose processes exist or may still start.

    Raises:
        ImpossibleWorldError: the end is written while a run goes on.
    """
    if not condition(after, "Finished") or condition(before, "Finished"):
        return
    running = [job["metadata"]["name"] for job in live if not job["metadata"].get("deletionTimestamp")]
    if running:
        raise ImpossibleWorldError(f"the end was written while {', '.join(running)} was live")


def condition(status: Manifest | None, type_: str) -> str:
    """Return the reason of a condition that is True; empty for any other."""
    for item in (status or {}).get("conditions", []):
        if item["type"] == type_ and item["status"] == "True":
            return str(item["reason"])
    return ""
