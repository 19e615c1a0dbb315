"""What the operator has made and somebody deletes is made again, and the end is the same."""

from __future__ import annotations

import base64
import random
from hashlib import sha256
from typing import Any

import pytest

from dapt_contract.pod.failure import FOREIGN_KEY, Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.reconcile import signing_secret
from dapt_operator.stage_run import Owner
from dapt_operator.testing.cluster import CHECK_INTERVAL
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World, failing, once

GANG: dict[str, Any] = {"resources": {"nodes": 2}, "pretraining": {"globalBatchSize": 16}}
TEMPLATE: dict[str, Any] = {
    "storage": {"existingClaim": None, "claimTemplate": {"accessModes": ["ReadWriteMany"]}}
}
NEW_KEY = "it begins from its start, because the key that signed its checkpoints is gone and they are refused"
NODES = "Unschedulable: 0/2 nodes are available"
LOST_NODE = Ends(75, cause=Cause.INFRASTRUCTURE)


def only(world: World, kind: str) -> str:
    """Name of the one object of a kind."""
    (found,) = world.cluster.objects(world.key, kind)
    return str(found["metadata"]["name"])


def delete(world: World, kind: str, name: str | None = None) -> str:
    name = name or only(world, kind)
    world.cluster.delete_object(world.key, kind, name)
    return name


def exists(world: World, kind: str, name: str) -> bool:
    return (kind, name) in world.cluster.stored(world.key).objects


def recreated(world: World) -> list[str]:
    """Messages of the Events about objects that were made again."""
    return [event.message for event in world.cluster.events(world.key) if event.reason == "Recreated"]


def pending(stage: StageFile) -> Stays:
    return Stays(pending_reason=NODES)


# --- before a run starts ---


@pytest.mark.parametrize("kind", ["Secret", "Service", "PersistentVolumeClaim"])
def test_object_that_a_run_shares_is_made_again_before_the_run_starts(kind: str) -> None:
    world = World(GANG, TEMPLATE)
    world.live_until("baseline")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    name = delete(world, kind)
    world.live_until("pretrain")
    assert exists(world, kind, name)
    assert [message.partition(" was gone")[0] for message in recreated(world)] == [f"{kind}/{name}"]
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_stage_that_needs_no_service_and_no_key_does_not_ask_for_them() -> None:
    world = World(GANG, TEMPLATE)
    world.live_until("verify")
    world.cluster.run_pods(world.key, healthy)
    plan = world.reconcile()
    assert world.running == "publish"
    assert [manifest["kind"] for manifest in plan.must_exist] == ["PersistentVolumeClaim"]
    assert not plan.needs_signing_secret


def test_service_of_somebody_else_is_reported_before_the_gang_and_never_taken() -> None:
    world = World(GANG)
    world.live_until("baseline")
    name = delete(world, "Service")
    world.cluster.take_name(world.key, "Service", name, "it has no owner")
    world.live(until=lambda world: world.status["phase"] == "Stalled")
    assert world.condition("Stalled") == (
        "True",
        "NameTaken",
        f"Service {name} exists already and is not this adaptation's: it has no owner; remove it, then this continues"
        " by itself",
    )
    world.cluster.free_name(world.key, "Service", name)
    world.live()
    assert world.tries.count("pretrain/1") == 1
    assert world.status["phase"] == "Published"


def test_service_of_somebody_else_is_reported_while_the_gang_runs_and_never_taken() -> None:
    world = World(GANG)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    name = delete(world, "Service")
    world.cluster.take_name(world.key, "Service", name, "it has no owner")
    world.cluster.advance(CHECK_INTERVAL.total_seconds())
    world.settle()
    assert not exists(world, "Service", name)
    assert recreated(world) == []
    assert world.running == "pretrain", "pods that have found each other need it no more"
    world.end("pretrain", LOST_NODE)
    world.live(until=lambda world: world.status["phase"] == "Stalled")
    assert world.condition("Stalled")[1] == "NameTaken"
    world.cluster.free_name(world.key, "Service", name)
    world.live()
    assert world.status["phase"] == "Published"


# --- the key of the checkpoints' signatures ---

FOREIGN = b"f" * 32
"""A key that somebody else knows."""


def known_keys(world: World) -> list[str]:
    """Digests of the keys that the status knows."""
    return list(world.status["ledger"].get("signingKeys", []))


def digests_of_job(world: World) -> list[str]:
    """Digests that the pods of the live run accept."""
    (container,) = world.job["spec"]["template"]["spec"]["containers"]
    values = {item["name"]: item.get("value", "") for item in container["env"]}
    return list(filter(None, values.get("DAPT_SIGNING_KEY_DIGESTS", "").split(",")))


def key_of(world: World) -> bytes:
    (secret,) = world.cluster.objects(world.key, "Secret")
    return base64.b64decode(secret["data"]["key"])


def put_foreign(world: World) -> str:
    """Make somebody's Secret under our name."""
    secret = signing_secret(Owner("default", "clinical", "00000001-uid"), FOREIGN)
    world.cluster.restore(world.key, secret)
    return str(secret["metadata"]["name"])


RUN = ["apply ConfigMap", "apply Job", "write_status clinical"]
"""Verbs of the start of a run."""


def kinds_of_verbs(world: World, first: int = 0) -> list[str]:
    """Writes since one of them, without Events."""
    verbs = [verb.partition("/")[0] for verb in world.cluster.verbs[first:]]
    return [verb for verb in verbs if not verb.startswith("record")]


def test_digest_of_a_key_is_stored_with_the_first_run_and_before_its_secret_is_created() -> None:
    world = World()
    world.reconcile()
    # The first time it is asked only whether the name is free.
    assert kinds_of_verbs(world) == ["apply Secret", *RUN, "apply Secret"]
    world.live_until("baseline")
    assert known_keys(world) == [sha256(key_of(world)).hexdigest()] == digests_of_job(world)


def test_key_is_made_before_the_run_that_signs_where_the_first_one_left_none() -> None:
    world = World()
    world.cluster.crash_at = 5  # before the Secret
    world.crashing_reconcile()
    assert len(known_keys(world)) == 1
    assert not world.cluster.objects(world.key, "Secret")
    world.live(until=lambda world: world.running == "prepare")
    world.cluster.run_pods(world.key, healthy)
    first = len(world.cluster.verbs)
    world.reconcile()
    assert kinds_of_verbs(world, first)[:6] == ["apply Secret", "write_status clinical", "apply Secret", *RUN]
    assert known_keys(world)[-1:] == [sha256(key_of(world)).hexdigest()]
    assert known_keys(world) == digests_of_job(world)
    world.live()
    assert world.status["phase"] == "Published"


def test_foreign_secret_before_the_first_run_is_reported_and_never_used() -> None:
    world = World()
    name = put_foreign(world)
    world.settle()
    assert world.runs == []
    assert world.condition("Stalled") == (
        "True",
        "NameTaken",
        f"Secret {name} exists already and is not this adaptation's: no key was made for it yet; remove it, then this"
        " continues by itself",
    )
    delete(world, "Secret")
    world.cluster.advance(60)
    world.live()
    assert world.status["phase"] == "Published"
    assert key_of(world) != FOREIGN


def test_foreign_secret_in_the_place_of_ours_is_refused_by_the_pods_and_stalls() -> None:
    world = World()
    world.live_until("baseline")
    delete(world, "Secret")
    name = put_foreign(world)
    world.live(until=lambda world: world.status["phase"] == "Stalled")
    assert world.condition("Stalled") == (
        "True",
        "NameTaken",
        f"baseline got no key to sign with, 3 runs in a row: Secret {name} {FOREIGN_KEY}: delete it; then start it"
        " again (any change of the spec does, and so does `dapt run`)",
    )
    delete(world, "Secret")
    world.edit(seed=99)
    world.live()
    assert world.status["phase"] == "Published"
    assert known_keys(world)[-1] == sha256(key_of(world)).hexdigest()


def test_own_secret_that_is_put_back_is_used_again() -> None:
    world = World()
    world.live_until("baseline")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    (secret,) = world.cluster.objects(world.key, "Secret")
    delete(world, "Secret")
    world.live_until("pretrain")
    assert len(known_keys(world)) == 2
    world.cluster.restore(world.key, secret)
    world.live()
    assert world.status["phase"] == "Published"


def test_key_of_an_older_version_is_accepted_until_it_is_made_again() -> None:
    world = World()
    world.live_until("prepare")
    del world.cluster.stored(world.key).resource["status"]["ledger"]["signingKeys"]
    world.cluster.touch(world.key)
    world.live_until("pretrain")
    assert digests_of_job(world) == []
    world.cluster.run_pods(world.key, healthy)
    delete(world, "Secret")
    world.live()
    assert world.status["phase"] == "Published"
    assert known_keys(world) == [sha256(key_of(world)).hexdigest()]


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(5))
def test_operator_killed_while_it_makes_the_key_converges(number: int, is_after: bool) -> None:
    world = World()
    world.cluster.crash_at, world.cluster.crash_after = number, is_after
    world.crashing_reconcile()
    assert world.cluster.crash_at is None
    world.live()
    assert world.status["phase"] == "Published"
    assert sha256(key_of(world)).hexdigest() in known_keys(world)
    assert world.status["usage"]["restarts"] == 0


def test_pending_run_is_replaced_when_a_run_in_parallel_has_the_key_made_again() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, pending)
    world.settle()
    resource = world.cluster.stored(world.key).resource
    resource["status"]["ledger"]["signingKeys"].append("0" * 64)
    world.cluster.touch(world.key)
    world.live()
    assert world.tries.count("pretrain/2") == 1
    assert world.status["usage"]["restarts"] == 0


def test_stage_that_loses_its_key_begins_again_and_says_so() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    name = delete(world, "Secret")
    world.end("pretrain", LOST_NODE)
    world.reconcile()
    world.cluster.advance(60)
    world.reconcile()
    assert exists(world, "Secret", name)
    assert world.condition("Reconciling") == (
        "True",
        "Retrying",
        f"pretrain is starting again (run 2); {NEW_KEY}",
    )
    assert recreated(world) == [
        f"Secret/{name} was gone and is created again with another key: checkpoints that were signed with the old one"
        " are refused, so a training stage that has to run again begins from its start; put the old Secret back before"
        " that to keep them"
    ]
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    assert world.condition("Reconciling") == ("True", "StageRunning", f"pretrain is running; {NEW_KEY}")
    assert world.status["stages"][-1]["message"] == NEW_KEY
    world.live()
    assert world.status["phase"] == "Published"
    assert NEW_KEY not in str(world.status)


def test_lost_key_of_a_stage_that_has_no_checkpoints_costs_nothing() -> None:
    world = World()
    world.live_until("evaluate")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    delete(world, "Secret")
    world.live_until("finetune")
    assert world.condition("Reconciling")[2] == "finetune of a1-s40 is starting"
    assert len(recreated(world)) == 1
    world.live()
    assert NEW_KEY not in str(world.status)


# --- while a run lives ---


def test_run_whose_pods_miss_the_key_is_replaced_by_one_that_knows_the_new_key() -> None:
    world = World()
    world.live(failing("pretrain", once(LOST_NODE)), lambda world: world.tries[-1] == "pretrain/2")
    restarts = world.status["usage"]["restarts"]
    name = delete(world, "Secret")
    assert world.cluster.run_pods(world.key, healthy) == 0, "its pod waits for the volume"
    world.reconcile()
    assert not exists(world, "Secret", name), "pods of the old run would refuse the new key"
    world.live(until=lambda world: world.tries[-1] == "pretrain/3")
    assert world.condition("Reconciling")[2].endswith(f"; {NEW_KEY}")
    assert known_keys(world) == digests_of_job(world)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/3") == 1
    assert world.status["usage"]["restarts"] == restarts, "it used no retry"


def test_claim_that_a_pod_misses_is_made_again() -> None:
    world = World(GANG, TEMPLATE)
    world.live_until("baseline")
    name = delete(world, "PersistentVolumeClaim")
    assert world.cluster.run_pods(world.key, healthy) == 0, "its pod waits for the volume"
    world.reconcile()
    assert exists(world, "PersistentVolumeClaim", name)
    assert recreated(world) == [
        f"PersistentVolumeClaim/{name} was gone and is created again, empty: what earlier stages have written is lost,"
        " and a stage that reads it fails"
    ]


@pytest.mark.parametrize("pods", [Stays(), Stays(pending_reason=NODES)], ids=["running", "waiting for nodes"])
def test_shared_objects_are_looked_at_once_an_interval_and_nothing_is_written_for_it(pods: Stays) -> None:
    world = World(GANG, TEMPLATE)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: pods)
    world.settle()
    world.cluster.advance(CHECK_INTERVAL.total_seconds())
    world.settle()
    verbs = len(world.cluster.verbs)
    world.cluster.advance(CHECK_INTERVAL.total_seconds())
    world.settle()
    assert len(world.cluster.verbs) == verbs
    delete(world, "Service")
    delete(world, "Secret")
    world.settle()
    assert len(world.cluster.verbs) == verbs
    world.cluster.advance(CHECK_INTERVAL.total_seconds())
    world.settle()
    applied = [verb for verb in world.cluster.verbs[verbs:] if verb.startswith("apply")]
    assert [verb.partition("/")[0] for verb in applied] == ["apply Service"]
    assert len(recreated(world)) == 1
    assert world.running == "pretrain"


def test_stage_file_that_pods_wait_for_is_made_again_word_for_word() -> None:
    world = World(GANG)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, pending)
    world.settle()
    (before,) = [
        item
        for item in world.cluster.objects(world.key, "ConfigMap")
        if item["metadata"]["name"] == world.job["metadata"]["name"]
    ]
    name = delete(world, "ConfigMap", before["metadata"]["name"])
    world.settle()
    assert before in world.cluster.objects(world.key, "ConfigMap")
    assert recreated(world) == [f"ConfigMap/{name} was gone and is created again"]
    world.live()
    assert "pretrain/2" not in world.tries
    assert world.status["phase"] == "Published"


@pytest.mark.parametrize(
    "edit", [{"spec": {"pretraining": {"microBatchSize": 2}}}, {"profile": {"ports": {"progress": 9401}}}]
)
def test_stage_file_that_would_be_another_now_is_replaced_with_its_run(edit: dict[str, Any]) -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, pending)
    world.settle()
    world.edit(**edit.get("spec", {}))
    world.offer(**edit.get("profile", {}))
    delete(world, "ConfigMap", str(world.job["metadata"]["name"]))
    world.live()
    assert world.tries.count("pretrain/2") == 1
    assert recreated(world) == []
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_object_that_cannot_be_made_again_stalls_what_waits_for_it() -> None:
    world = World()
    world.live_until("pretrain")
    name = delete(world, "Secret")
    world.cluster.refuse(world.key, "Secret", "exceeded quota")
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    message = (
        f"the cluster refuses Secret {name}: exceeded quota; once it is allowed, this continues by itself"
    )
    assert world.condition("Stalled") == ("True", "Refused", message)
    writes = world.cluster.writes
    for _ in range(5):
        world.cluster.advance(10)
        world.settle()
    assert world.condition("Stalled") == ("True", "Refused", message)
    assert world.cluster.writes == writes
    world.cluster.refuse(world.key, "Secret")
    world.cluster.advance(10)
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    world.live()
    assert world.status["phase"] == "Published"


# --- anything at any step ---

KINDS = ("Secret", "Service", "ConfigMap", "PersistentVolumeClaim", "Job", "Pod")


def troubled(stage: StageFile) -> Ends | Stays:
    """One rank is lost in each training stage, so that each begins twice."""
    if stage.kind in ("pretrain", "finetune") and stage.run.try_number == 1:
        return LOST_NODE
    return healthy(stage)


class Vandal:
    """Lets a world live, and deletes objects of it at random moments."""

    def __init__(self, world: World, seed: int, num_deletions: int) -> None:
        self.world, self.random = world, random.Random(seed)
        self.num_left = num_deletions
        self.started: set[str] = set()

    def live(self) -> None:
        """Go on until the model is published."""
        for _ in range(300):
            if not self.world.reconcile().is_empty:
                continue
            if self.world.status["phase"] == "Published":
                return
            if self.num_left and self.random.random() < 0.3:
                self.delete_one()
            elif not self.world.cluster.run_pods(self.world.key, self.script):
                self.world.cluster.advance(self.random.choice((10, 60, 300)))
        raise AssertionError(f"no end: {self.world.status['conditions']}")

    def script(self, stage: StageFile) -> Ends | Stays:
        """Let each run be pending, then running, then end: objects are deleted in each of these."""
        step = f"{stage.run.key} pending"
        if step not in self.started:
            self.started.add(step)
            return Stays(pending_reason=NODES)
        if stage.run.key not in self.started:
            self.started.add(stage.run.key)
            return Stays()
        return troubled(stage)

    def delete_one(self) -> None:
        """Delete an object of a random kind, if there is one."""
        kind = self.random.choice(KINDS)
        names = [
            item["metadata"]["name"]
            for item in self.world.cluster.objects(self.world.key, kind)
            if not item["metadata"].get("deletionTimestamp")
        ]
        if names:
            self.num_left -= 1
            delete(self.world, kind, self.random.choice(names))


def ending(world: World) -> dict[str, Any]:
    """What must not depend on deleted objects."""
    status = world.status
    kept = {
        name: status[name] for name in ("phase", "selected", "output", "resolved", "frozen", "candidates")
    }
    kept["stages"] = sorted((one["name"], one.get("candidate", ""), one["state"]) for one in status["stages"])
    kept["conditions"] = [(c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"]]
    return kept


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Any]:
    world = World(GANG, TEMPLATE)
    Vandal(world, seed=0, num_deletions=0).live()
    return ending(world)


@pytest.mark.parametrize("seed", range(8))
def test_objects_deleted_at_any_step_do_not_change_the_end(seed: int, unbroken: dict[str, Any]) -> None:
    world = World(GANG, TEMPLATE, graceful=bool(seed % 2))
    vandal = Vandal(world, seed, num_deletions=8)
    vandal.live()
    assert ending(world) == unbroken
    assert len(set(world.cluster.created)) == len(world.cluster.created)
