"""Tests what a run waits for: user action, a queue, a node. It stalls with the reason and recovers by correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dapt_contract.pod.failure import ALTERED_STAGE_FILE, Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.testing.objects import Ends, Script, Stays, pending_status
from support.builders import facts_for, healthy
from support.worlds import World, failing, once

SECRET = 'CreateContainerConfigError: secret "dapt-hub" not found'
CLAIM = 'Unschedulable: persistentvolumeclaim "corpora" not found'
PULL = 'ErrImagePull: failed to pull image "registry.example/dapt-trainer:1.0.0": not found'
BACK_OFF = 'ImagePullBackOff: Back-off pulling image "registry.example/dapt-trainer:1.0.0"'
NODES = "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
NO_NODES = "Unschedulable: no nodes are available: Insufficient nvidia.com/gpu"

SMALL = (
    "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu in flavor default, request >"
    " maximum capacity (8 > 4)"
)
FULL = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor default"
)


def waiting(text: str) -> Script:
    return lambda stage: Stays(waiting=text)


def pending(text: str) -> Script:
    return lambda stage: Stays(pending_reason=text)


def stuck(world: World, script: Script) -> None:
    """The run is created, its pods say what they wait for, and the planner has seen it."""
    world.settle()
    world.cluster.run_pods(world.key, script)
    world.settle()


@pytest.mark.parametrize(
    ("script", "reason", "message"),
    [
        (
            waiting(SECRET),
            "SecretNotFound",
            "destination cannot start: there is no Secret dapt-hub in this namespace: create it; the pod waits for it",
        ),
        (
            pending(CLAIM),
            "ClaimNotFound",
            "destination cannot start: there is no PersistentVolumeClaim corpora in this namespace: create it, or name"
            " another",
        ),
        (
            waiting(PULL),
            "ImageNotPulled",
            "destination cannot start: image registry.example/dapt-trainer:1.0.0 cannot be pulled (ErrImagePull: failed"
            ' to pull image "registry.example/dapt-trainer:1.0.0": not found): correct the profile\'s trainerImage, or'
            " give its service account access to the registry",
        ),
    ],
    ids=["secret", "claim", "image"],
)
def test_missing_object_stalls_and_recovers_when_the_pod_starts(
    script: Script, reason: str, message: str
) -> None:
    world = World()
    stuck(world, script)
    assert world.condition("Stalled") == ("True", reason, message)
    assert world.condition("Reconciling") == ("False", reason, "waits for user action")
    assert world.condition("Accepted")[0] == "True"
    assert world.status["phase"] == "Stalled"
    assert world.reconcile().requeue_after == 10.0
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    assert world.status["phase"] == "Preparing"
    world.live()
    assert world.tries[0] == "destination/1"
    assert world.tries.count("destination/2") == 0
    assert world.status["phase"] == "Published"


def test_the_kubelets_two_wordings_of_one_failure_are_written_once() -> None:
    world = World()
    stuck(world, waiting(PULL))
    writes, told = world.cluster.writes, world.condition("Stalled")
    for text in (BACK_OFF, PULL, BACK_OFF):
        world.cluster.run_pods(world.key, waiting(text))
        assert world.reconcile().is_empty
    assert (world.cluster.writes, world.condition("Stalled")) == (writes, told)


@pytest.mark.parametrize(
    ("script", "correct"),
    [
        (waiting(SECRET), lambda world: world.edit(credentials=None)),
        (waiting(PULL), lambda world: world.offer(trainerImage="registry.example/dapt-trainer:1.0.1")),
        (pending(NODES), lambda world: world.edit(resources={"gpusPerNode": 1})),
    ],
    ids=["spec", "profile", "resources"],
)
@pytest.mark.parametrize("graceful", [False, True])
def test_corrected_spec_or_profile_replaces_a_run_that_could_not_start(
    script: Script, correct: Callable[[World], None], graceful: bool
) -> None:
    world = World(graceful=graceful)
    stuck(world, script)
    world.cluster.advance(5)
    correct(world)
    first = world.reconcile()
    name = world.runs[0].run.name + "-destination-" + world.runs[0].run.key[:8]
    assert [(removal.kind, removal.name) for removal in first.delete] == [("ConfigMap", name), ("Job", name)]
    world.live()
    assert world.tries[:3] == ["destination/1", "destination/2", "prepare/1"]
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_edit_keeps_a_run_that_is_starting_or_running() -> None:
    world = World()
    world.settle()
    world.edit(gates={"maxGeneralPerplexityIncrease": 0.3})
    world.live()
    assert world.tries.count("destination/2") == 0


def test_a_run_that_started_is_left_alone_whatever_changes() -> None:
    world = World()
    stuck(world, lambda stage: Stays())
    world.offer(trainerImage="registry.example/dapt-trainer:1.0.1")
    world.edit(resources={"gpusPerNode": 1})
    assert world.reconcile().delete == ()
    assert world.running == "destination"


def test_run_waiting_for_quota_is_reconciling_with_the_message_of_the_queue() -> None:
    world = World({"queue": "team"})
    world.cluster.queues["team"] = FULL
    world.reconcile()
    assert world.condition("QuotaReserved") == (
        "False",
        "WaitingForQuota",
        "destination was submitted to queue team",
    )
    stuck(world, healthy)
    assert world.job["spec"]["suspend"] is True
    assert world.condition("QuotaReserved") == (
        "False",
        "WaitingForQuota",
        f"destination waits for quota: {FULL}",
    )
    assert world.condition("Reconciling") == (
        "True",
        "WaitingForQuota",
        f"destination waits for quota: {FULL}",
    )
    assert world.condition("Stalled")[0] == "False"
    world.cluster.queues["team"] = ""
    world.cluster.run_pods(world.key, healthy)  # admitted
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    assert world.condition("QuotaReserved") == (
        "True", "QuotaGranted", "the queue has granted what destination asks for",
    )  # fmt: skip
    while world.status["phase"] != "Published":
        world.settle()
        world.cluster.run_pods(world.key, healthy)
    assert world.condition("QuotaReserved") == (
        "False", "NothingRunning", "nothing runs, so no quota of queue team is held",
    )  # fmt: skip
    assert all(job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team" for job in jobs(world))


def jobs(world: World) -> list[dict[str, Any]]:
    return world.cluster.objects(world.key, "Job")


def test_quota_condition_without_a_queue_is_unknown() -> None:
    world = World()
    world.live()
    assert world.condition("QuotaReserved") == ("Unknown", "NoQueue", "the spec names no queue")


def test_quota_that_is_too_small_stalls_until_it_is_raised() -> None:
    world = World({"queue": "team"})
    world.cluster.queues["team"] = SMALL
    stuck(world, healthy)
    assert world.condition("Stalled") == (
        "True",
        "QuotaTooSmall",
        f"destination cannot be admitted by queue team: {SMALL}; ask for less in resources, name another queue, or have"
        " its quota raised",
    )
    assert world.condition("QuotaReserved") == (
        "False", "QuotaTooSmall", f"the queue cannot grant what destination asks for: {SMALL}",
    )  # fmt: skip
    world.cluster.queues["team"] = ""
    world.cluster.run_pods(world.key, healthy)
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    assert world.tries == ["destination/1"]


def test_another_queue_replaces_a_run_that_could_never_be_admitted() -> None:
    world = World({"queue": "team"})
    world.cluster.queues |= {"team": SMALL, "large": ""}
    stuck(world, healthy)
    world.cluster.advance(5)
    world.edit(queue="large")
    world.settle()
    assert world.tries == ["destination/1", "destination/2"]
    assert world.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "large"


def test_run_that_no_queue_answers_for_is_replaced_once_the_spec_names_no_queue() -> None:
    world = World({"queue": "team"})  # there is no Kueue: no Workload is ever created
    world.settle()
    world.cluster.advance(60)
    world.edit(gates={"patience": 3}, queue=None)
    world.live()
    assert world.tries[:2] == ["destination/1", "destination/2"]
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_waiting_for_quota_too_long_names_the_quota() -> None:
    world = World({"queue": "team"}, {"pendingTimeoutSeconds": 600})
    world.cluster.queues["team"] = FULL
    stuck(world, healthy)
    world.cluster.advance(601)
    world.settle()
    assert world.condition("Stalled") == (
        "True",
        "PendingTimeout",
        f"destination waits for quota for more than 600 s (pendingTimeoutSeconds): {FULL}; free capacity, or change"
        " resources",
    )


def test_suspending_gives_the_quota_back() -> None:
    world = World({"queue": "team"}, graceful=True)
    world.cluster.queues["team"] = ""
    for script in (healthy, lambda stage: Stays()):
        stuck(world, script)
    world.edit(suspend=True)
    world.settle()
    world.cluster.run_pods(world.key, healthy)
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    assert jobs(world) == []
    assert world.condition("QuotaReserved")[1] == "NothingRunning"


def test_a_pod_that_just_starts_is_no_news() -> None:
    world = World()
    stuck(world, waiting("ContainerCreating"))
    assert world.condition("Reconciling") == ("True", "StageStarting", "destination is starting")
    assert "message" not in world.status["stages"][0]


def tampered(world: World) -> str:
    """Name of the ConfigMap that was changed under a run."""
    world.live_until("pretrain")
    stuck(world, lambda stage: Stays())
    name = str(world.job["metadata"]["name"])
    world.cluster.tamper(world.key, name)
    world.settle()
    return name


def test_a_changed_file_stalls_and_the_run_is_left_as_it_is() -> None:
    world = World()
    name = tampered(world)
    status, reason, message = world.condition("Stalled")
    assert (status, reason) == ("True", "Tampered")
    assert message.startswith(f"pretrain: ConfigMap {name} was changed after it was written")
    assert message.endswith("delete the ConfigMap, then the stage starts again")
    assert world.running == "pretrain"
    assert world.reconcile().delete == ()


def test_a_lost_file_of_pods_that_run_costs_nothing() -> None:
    world = World()
    name = tampered(world)
    world.cluster.delete_object(world.key, "ConfigMap", name)
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    assert world.running == "pretrain"


def test_deleted_config_map_of_pending_pods_is_recreated_without_using_a_retry() -> None:
    world = World({"resources": {"nodes": 2}, "pretraining": {"globalBatchSize": 16}})
    world.live_until("pretrain")
    stuck(world, pending(NODES))
    name = str(world.job["metadata"]["name"])
    world.cluster.tamper(world.key, name)
    world.settle()
    assert world.condition("Stalled")[1] == "Tampered"
    world.cluster.delete_object(world.key, "ConfigMap", name)
    world.live()
    assert "pretrain/2" not in world.tries
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_finished_stage_with_a_changed_file_continues() -> None:
    world = World()
    tampered(world)
    world.cluster.run_pods(world.key, lambda stage: Ends(facts=facts_for(stage)))
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    assert world.running == "evaluate"


def altered(stage: StageFile) -> Ends | None:
    said = "/run/dapt/stage/stage.json: was altered after the run was created: SHA-256 0123, expected 4567"
    return Ends(64, message=said, cause=Cause.BAD_INPUT)


def test_pod_that_finds_its_stage_file_changed_gets_a_new_run() -> None:
    world = World()
    world.live(failing("baseline", once(Ends(64, message=str(ALTERED_STAGE_FILE), cause=Cause.BAD_INPUT))))
    assert world.tries.count("baseline/2") == 1
    assert world.status["phase"] == "Published"


def test_files_that_are_changed_again_and_again_stall() -> None:
    world = World()
    world.live(failing("baseline", altered))
    assert world.tries == ["destination/1", "prepare/1", "baseline/1", "baseline/2", "baseline/3"]
    assert world.condition("Stalled") == (
        "True",
        "Tampered",
        "the ConfigMap of baseline was changed in 3 runs in a row: /run/dapt/stage/stage.json: was altered after"
        " the run was created: SHA-256 0123, expected 4567; find out who changes ConfigMaps of this namespace, then"
        " start it again (any change of the spec does, and so does `dapt run`)",
    )
    world.edit(gates={"patience": 3})
    world.live()
    assert world.status["phase"] == "Published"


# --- a gang of which one pod waits ---


def half_started() -> World:
    """Two nodes train; the second pod was created five minutes after the run, and has found no place."""
    world = World(
        {"resources": {"nodes": 2}, "pretraining": {"globalBatchSize": 16}}, {"pendingTimeoutSeconds": 600}
    )
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.cluster.advance(300)
    late = world.cluster.stored(world.key).objects["Pod", f"{world.job['metadata']['name']}-1"]
    late["metadata"]["creationTimestamp"] = timestamp(world.cluster.now)
    late["status"] = pending_status(Stays(pending_reason=NODES))
    world.settle()
    return world


def test_pod_of_a_gang_that_waits_is_reported_while_the_others_run() -> None:
    world = half_started()
    assert world.condition("Reconciling") == (
        "True",
        "WaitingForNodes",
        f"pretrain waits: 1 of 2 pods: {NO_NODES}",
    )
    assert world.condition("Stalled")[0] == "False"


def test_pending_timeout_applies_to_a_gang_that_is_partly_running() -> None:
    world = half_started()
    world.cluster.advance(600)
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    world.cluster.advance(1)
    world.settle()
    assert world.condition("Stalled") == (
        "True",
        "PendingTimeout",
        "pretrain waits for the rest of its pods for more than 600 s (pendingTimeoutSeconds): 1 of 2 pods:"
        f" {NO_NODES}; free capacity, or change resources",
    )
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/2") == 0
