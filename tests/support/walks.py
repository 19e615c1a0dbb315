"""Random walks: four adaptations in one cluster, and everything that tenants, nodes, controllers and the API may do.

A walk takes one operation after the other, each on one of the adaptations, and lets the operator reconcile in between.
In the end everything is put in order, as an administrator would, and the adaptations live on until nothing happens.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.api.names import object_name
from dapt_operator.api.schema.immutable import changed_blocks
from dapt_operator.api.v1alpha1.conditions import OUT_OF_MEMORY, timestamp
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.cluster.errors import ConflictError
from dapt_operator.cluster.port import Key
from dapt_operator.last_plans import LastPlans
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.launchers.observe.containers import has_ended
from dapt_operator.plan.decide import Plan
from dapt_operator.reconcile import reconcile
from dapt_operator.stage_run import JsonObject
from dapt_operator.testing.cluster import MemoryCluster
from dapt_operator.testing.objects import Ends, OperatorKilledError, Stays, copy, job_spec, started_at
from support.builders import adaptation, checkpoint, facts_for, merged, pretrain_facts, profile

NAMES: Final = ("first", "gang", "rollback", "tuned")
SELF_MADE: Final = "self-made"
CLAIM: Final = {"claimTemplate": {"accessModes": ["ReadWriteMany"]}, "existingClaim": None}
SPECS: Final[dict[str, dict[str, Any]]] = {
    "first": {},
    "gang": {
        "profile": "gangs",
        "resources": {"nodes": 2},
        "pretraining": {"globalBatchSize": 16},
        "queue": "team",
    },
    "rollback": {
        "pretraining": {"checkpoints": {"count": 2}},
        "evaluation": {"when": "everyCheckpoint"},
        "selection": {"interpolate": [0.5, 1.0], "averageLast": 1},
        "gates": {"onBreach": "Rollback"},
    },
    "tuned": {
        "preference": {"data": [{"source": "file:///text/pairs.jsonl"}]},
        "cleanup": {"afterSeconds": 600},
    },
}
EDITS: Final[tuple[dict[str, Any], ...]] = (
    {"seed": 3},
    {"corpus": {"domain": [{"source": "file:///text/another.jsonl"}]}},
    {"pretraining": {"budget": {"steps": 60}}},
    {"pretraining": {"microBatchSize": 3}},
    {"evaluation": {"domain": {"tasks": [{"name": "drugs", "source": "file:///eval/drugs.jsonl"}]}}},
    {"gates": {"maxGeneralPerplexityIncrease": 0.2}},
    {"gates": {"onBreach": "Warn"}},
    {"finetuning": {"data": [{"source": "file:///text/more.jsonl"}]}},
    {"finetuning": None},
    {"output": {"destination": "file:///out/elsewhere"}},
    {"queue": "nowhere"},
    {"priorityClassName": "not-allowed"},
    {"limits": {"gpuHours": 0.2}},
    {"resources": {"gpusPerNode": 1}},
    {"resources": {"gpusPerNode": 16}},
    {"stageResources": {"baseline": {"gpus": 1}}},
    {"cleanup": {"afterSeconds": 60}},
    {"profile": "missing"},
)


MAX_MOVES_TO_TRAINING: Final = 10
"""Moves of its pods after which the gang has mostly reached its training."""


class MeteredCluster(MemoryCluster):
    """Measures how long accelerators are held, by watching the pods and not the operator's books."""

    def __init__(self) -> None:
        super().__init__()
        self.graceful = True
        self.used_seconds: defaultdict[str, float] = defaultdict(float)
        """Accelerator-seconds, by uid of the adaptation."""
        self.keys: set[Key] = set()

    def advance(self, seconds: float) -> None:
        """Move the time forward, and count what runs meanwhile."""
        for key in self.keys:
            stored = self.stored(key)
            for gang in stored.gangs():
                pods = stored.pods_of(gang["metadata"]["name"])
                has_begun = any(started_at(pod) for pod in pods)
                if has_begun and any(started_at(pod) and not has_ended(pod) for pod in pods):
                    self.used_seconds[stored.resource["metadata"]["uid"]] += seconds * accelerators_of(gang)
        super().advance(seconds)


def accelerators_of(gang: JsonObject) -> int:
    """Accelerators that the pods of a gang ask for."""
    limits = job_spec(gang)["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    return pods_of_gang(gang) * int(limits.get("nvidia.com/gpu", 0))


def pods_of_gang(gang: JsonObject) -> int:
    """How many pods a gang has."""
    return int(job_spec(gang)["completions"])


class Walk:
    """One walk.

    Args:
        seed: decides everything that is random.
        steps: operations.
    """

    def __init__(self, seed: int, steps: int) -> None:
        self.random = random.Random(seed)
        self.steps = steps
        self.cluster = MeteredCluster()
        self.cluster.queues["team"] = ""
        self.used: Counter[str] = Counter()
        """How often each kind of operation was possible and done."""
        self.trace: list[str] = []
        self.outcomes: dict[Key, Ends | Stays] = {}
        """What the next run that moves does, by adaptation."""
        self.started: set[str] = set()
        """Keys of runs that have been running; a run runs for a while before it ends."""
        self.finalized: set[Key] = set()
        self.last_plans = LastPlans()
        self.gone: dict[Key, str] = {}
        """Names that are free at the moment, with the name of their spec."""
        self.quiet_writes: list[str] = []
        self.add_profiles()
        self.keys = [self.add(name) for name in NAMES]

    def add_profiles(self) -> None:
        self.cluster.add_profile(profile())
        self.cluster.add_profile(profile("gangs", storage=CLAIM, launcher="JobSet"))

    def add(self, name: str) -> Key:
        key = self.cluster.add(adaptation(name, **SPECS[name]))
        self.cluster.keys.add(key)
        self.gone.pop(key, None)
        return key

    # --- the world's turn ---

    def operate(self, key: Key, limit: int = 25) -> Plan | None:
        """Let the operator reconcile until there is nothing to do; None when it was killed or refused."""
        if key in self.gone:
            return None
        for _ in range(limit):
            try:
                plan = reconcile(self.cluster, key, LAUNCHERS, last_plans=self.last_plans)
            except (OperatorKilledError, ConflictError):
                continue  # a new process, or the work queue, tries again
            if plan.is_empty:
                return plan
        raise AssertionError(f"{key.name}: the operator does not come to rest")

    def script(self, key: Key) -> Callable[[StageFile], Ends | Stays]:
        def decide(stage: StageFile) -> Ends | Stays:
            is_new = stage.run.key not in self.started
            if isinstance(self.outcomes.get(key), Stays):
                waiting = self.outcomes.pop(key)
                return waiting if is_new else Stays()  # only a pod that has not started waits for a node
            if is_new:
                self.started.add(stage.run.key)
                return Stays(self._reading(stage))
            planned = self.outcomes.pop(key, None)
            if planned is None:
                return self._healthy(stage)
            if isinstance(planned, Ends) and planned.exit_code == 76 and stage.kind == "pretrain":
                rows = [checkpoint(10, 2.9), checkpoint(20, 2.8, 0.7)]
                facts = pretrain_facts(rows, "ForgettingLimit", message=planned.message)
                return Ends(76, facts=facts, message=planned.message, cause=planned.cause)
            if isinstance(planned, Ends) and planned.exit_code == 76:
                return self._healthy(stage)
            if isinstance(planned, Ends) and planned.exit_code == 0:
                return Ends(
                    facts=facts_for(stage), lose_message=planned.lose_message, lingers=planned.lingers
                )
            return planned

        return decide

    @staticmethod
    def _healthy(stage: StageFile) -> Ends:
        return Ends(facts=facts_for(stage))

    @staticmethod
    def _reading(stage: StageFile) -> Progress | None:
        if not isinstance(stage.config, PretrainConfig):
            return None
        rows = [checkpoint(stage.config.checkpoint_steps[0], 2.9)]
        return Progress(run_key=stage.run.key, stage="pretrain", checkpoints=rows)

    def pods(self, key: Key, seconds: float = 30.0) -> None:
        if key not in self.gone:
            self.cluster.run_pods(key, self.script(key), seconds)

    # --- one walk ---

    def run(self) -> None:
        """Take all steps; put everything in order; live to the end."""
        operations = dict(OPERATIONS)
        for _ in range(self.steps):
            key = self.random.choice(self.keys)
            name = self.random.choice([*operations, *("pods move",) * 24])
            self.trace.append(f"{name} {key.name}")
            if operations[name](self, key):
                self.used[name] += 1
            for other in self.keys:
                self.operate(other)
            self.cluster.advance(self.random.choice((0, 1, 5, 20)))
        self.trace.append("put in order")
        self.put_in_order()
        self.live()

    def put_in_order(self) -> None:
        """Take back everything that stands in the way."""
        cluster = self.cluster
        cluster.crash_at, cluster.num_conflicts, cluster.num_taken_names = None, 0, 0
        cluster.queues["team"] = ""
        self.outcomes.clear()
        self.add_profiles()
        for key in self.keys:
            if key in self.finalized:
                _collect(self, key)
            if key in self.gone:
                self.add(self.gone[key])
            stored = cluster.stored(key)
            stored.taken.clear()
            stored.refused.clear()
            _remove_self_made(self, key)
            self.correct(key)

    def correct(self, key: Key) -> None:
        """Give back its own spec to an adaptation, but for the blocks that are in use already."""
        spec = self.cluster.stored(key).resource["spec"]
        own = adaptation(key.name, **SPECS[key.name])["spec"]
        frozen = self.cluster.status(key).get("frozen") or {}
        new = {name: value for name, value in spec.items() if frozen.get(name)}
        new |= {name: value for name, value in own.items() if not frozen.get(name)}
        # Without a profile of a frozen name nothing could run.
        new.setdefault("profile", own["profile"])
        self.replace_spec(key, new)

    def replace_spec(self, key: Key, new: JsonObject) -> None:
        def change(spec: JsonObject) -> None:
            spec.clear()
            spec.update(copy(new))

        self.cluster.edit(key, change)

    def live(self) -> None:
        """Live until every adaptation has ended; a stalled one is started again as its message says."""
        for turn in range(400):
            waits = []
            for key in self.keys:
                plan = self.operate(key)
                before = self.cluster.writes
                if reconcile(self.cluster, key, LAUNCHERS).is_empty and self.cluster.writes != before:
                    self.quiet_writes.append(key.name)
                if plan is not None and plan.requeue_after is not None:
                    waits.append(plan.requeue_after)
            ended = sum(self.cluster.run_pods(key, self.script(key)) for key in self.keys)
            unfinished = [key for key in self.keys if not is_true(self.cluster.status(key), "Finished")]
            stalled = [key for key in unfinished if is_true(self.cluster.status(key), "Stalled")]
            if not unfinished:
                return
            if stalled and turn % 10 == 9:
                for key in stalled:
                    self._restart(key)
            if not ended:
                self.cluster.advance(min(waits, default=15.0))
        reasons = {
            f"{key.name}: {item['type']} {item['reason']}: {item['message'][:150]}"
            for key in unfinished
            for item in self.cluster.status(key).get("conditions", [])
            if item["type"] in ("Stalled", "Reconciling", "Suspended") and item["status"] == "True"
        }
        raise AssertionError(f"this walk does not end: {'; '.join(sorted(reasons))}")

    def _restart(self, key: Key) -> None:
        """Change the spec where it may be changed, as the message of a stalled adaptation asks."""
        number = self.cluster.stored(key).resource["metadata"]["generation"]
        needs_memory = condition_of(self.cluster.status(key), "Stalled").get("reason") == OUT_OF_MEMORY

        def change(spec: JsonObject) -> None:
            spec.setdefault("gates", {})["minDomainPerplexityDecrease"] = 0.0
            spec.setdefault("gates", {})["maxGeneralScoreDrop"] = 3.0 + number / 1000
            if spec["gates"].get("onBreach") == "Block":
                spec["gates"]["onBreach"] = "Warn"
            if needs_memory:
                spec.setdefault("resources", {})["memory"] = f"{64 + number}Gi"

        self.cluster.edit(key, change)

    def problems(self) -> list[str]:
        """What is wrong at the end."""
        found = [f"{name}: a reconcile without a change wrote the status" for name in self.quiet_writes]
        if len(set(self.cluster.created)) < len(self.cluster.created):
            found.append("a run key has two Jobs")
        for key in self.keys:
            stored, status = self.cluster.stored(key), self.cluster.status(key)
            if live := [job["metadata"]["name"] for job in self.cluster.live_jobs(key)]:
                found.append(f"{key.name}: {', '.join(live)} outlived the end")
            fence = (status.get("ledger") or {}).get("fence", 0)
            orphans = [
                gang["metadata"]["name"]
                for gang in stored.gangs()
                if int(gang["metadata"]["labels"].get("dapt.dev/fence", fence)) > fence
            ]
            if orphans:
                found.append(f"{key.name}: no record knows {', '.join(orphans)}")
            actual = self.cluster.used_seconds[stored.resource["metadata"]["uid"]]
            booked = 3600 * (status.get("usage") or {}).get("gpuHours", 0.0)
            if abs(booked - actual) > max(4.0, 0.01 * actual):
                found.append(
                    f"{key.name}: {booked:.0f} accelerator-seconds are booked and {actual:.0f} were used"
                )
        return found


# --- operations: each returns whether it was possible ---


def condition_of(status: JsonObject, type_: str) -> JsonObject:
    """A condition of a status; empty while there is none."""
    return next((item for item in status.get("conditions", []) if item["type"] == type_), {})


def is_true(status: JsonObject, type_: str) -> bool:
    return bool(condition_of(status, type_).get("status") == "True")


def _pods_move(walk: Walk, key: Key) -> bool:
    walk.pods(key, walk.random.choice((5.0, 30.0, 600.0)))
    return key not in walk.gone


def _outcome(ends: Ends | Stays) -> Callable[[Walk, Key], bool]:
    def plan(walk: Walk, key: Key) -> bool:
        if key in walk.gone or not walk.cluster.live_jobs(key):
            return False
        walk.outcomes[key] = ends
        for _ in range(2):  # it runs, and then this happens to it
            walk.pods(key)
            if key not in walk.outcomes:
                return True
        return False

    return plan


def _edit(walk: Walk, key: Key) -> bool:
    if key in walk.gone:
        return False
    change = walk.random.choice(EDITS)
    spec = walk.cluster.stored(key).resource["spec"]
    return _admitted(walk, key, merged(spec, change))


def _admitted(walk: Walk, key: Key, new: JsonObject) -> bool:
    """Whether the API server accepts this spec; if so it is stored."""
    resource = walk.cluster.stored(key).resource
    frozen = DomainAdaptationStatus.model_validate(resource.get("status") or {}).frozen
    try:
        edited = DomainAdaptationSpec.model_validate(new)
    except ValidationError:
        return False
    if changed_blocks(DomainAdaptationSpec.model_validate(resource["spec"]), edited, frozen):
        return False
    walk.replace_spec(key, new)
    return True


def _suspend(walk: Walk, key: Key) -> bool:
    return key not in walk.gone and _admitted(
        walk, key, {**walk.cluster.stored(key).resource["spec"], "suspend": True}
    )


def _resume(walk: Walk, key: Key) -> bool:
    return key not in walk.gone and _admitted(
        walk, key, {**walk.cluster.stored(key).resource["spec"], "suspend": False}
    )


def _pin(walk: Walk, key: Key) -> bool:
    if key in walk.gone:
        return False
    pin = walk.random.choice(("a1-s10", "a1-s20", "a1-s999", None))
    spec = walk.cluster.stored(key).resource["spec"]
    return _admitted(walk, key, merged(spec, {"selection": {"pin": pin}}))


def _delete(walk: Walk, key: Key) -> bool:
    """Delete the resource; the garbage collector takes its children, and the name is used again later."""
    if key in walk.gone or key in walk.finalized:
        return False
    _forget(walk, key)
    return True


def _forget(walk: Walk, key: Key) -> None:
    walk.cluster.remove(key)
    walk.cluster.keys.discard(key)
    walk.finalized.discard(key)
    walk.gone[key] = key.name


def _delete_slowly(walk: Walk, key: Key) -> bool:
    if key in walk.gone or key in walk.finalized:
        return False
    walk.cluster.remove_later(key)
    walk.finalized.add(key)
    return True


def _collect(walk: Walk, key: Key) -> bool:
    """Remove the last finalizer of a deleted resource, once nothing of it runs."""
    if key not in walk.finalized:
        return False
    for _ in range(5):
        walk.operate(key)
        walk.pods(key)
    live = [job["metadata"]["name"] for job in walk.cluster.live_jobs(key)]
    assert not live, f"{', '.join(live)} outlived the deletion of {key.name}"
    _forget(walk, key)
    return True


def _create_again(walk: Walk, key: Key) -> bool:
    if key not in walk.gone:
        return False
    walk.add(walk.gone[key])
    return True


def _relabel_resource(walk: Walk, key: Key) -> bool:
    if key in walk.gone:
        return False
    walk.cluster.stored(key).resource["metadata"].setdefault("labels", {})["team"] = str(walk.random.random())
    walk.cluster.touch(key)
    return True


def _some_job(walk: Walk, key: Key) -> JsonObject | None:
    if key in walk.gone:
        return None
    jobs = [gang for gang in walk.cluster.stored(key).gangs() if gang["metadata"]["uid"] != SELF_MADE]
    return walk.random.choice(jobs) if jobs else None


def _relabel_job(walk: Walk, key: Key) -> bool:
    job = _some_job(walk, key)
    if job is None:
        return False
    labels = job["metadata"]["labels"]
    job["metadata"]["labels"] = {name: value for name, value in labels.items() if "queue" in name}
    walk.operate(key)
    job["metadata"]["labels"] = labels
    return True


def _self_made_job(walk: Walk, key: Key) -> bool:
    """Somebody makes a Job that says it is ours: owner, labels and name are as ours would be."""
    job = _some_job(walk, key)
    if job is None or job["kind"] != "Job":
        return False
    made, number = copy(job), walk.random.choice((7, 10**18))
    labels = made["metadata"]["labels"]
    identity = RunIdentity(
        namespace=key.namespace,
        name=key.name,
        uid=labels["dapt.dev/uid"],
        stage=labels["dapt.dev/stage"],
        attempt=int(labels["dapt.dev/attempt"]),
        candidate=labels.get("dapt.dev/candidate"),
        try_number=number,
        fence=10**18,
    )
    made["metadata"] |= {
        "name": object_name(identity.name, identity.stage, identity.key),
        "uid": SELF_MADE,
        "creationTimestamp": timestamp(walk.cluster.now),
    }
    made["status"] = {}
    for metadata in (made["metadata"], made["spec"]["template"]["metadata"]):
        metadata["labels"] |= {"dapt.dev/try": str(number), "dapt.dev/fence": str(identity.fence)}
    walk.cluster.stored(key).objects[("Job", made["metadata"]["name"])] = made
    walk.operate(key)
    _remove_self_made(walk, key)
    return True


def _remove_self_made(walk: Walk, key: Key) -> None:
    objects = walk.cluster.stored(key).objects
    for place in [place for place, item in objects.items() if item["metadata"].get("uid") == SELF_MADE]:
        del objects[place]


def _delete_job(walk: Walk, key: Key) -> bool:
    job = _some_job(walk, key)
    if job is None:
        return False
    walk.cluster.delete_object(key, job["kind"], job["metadata"]["name"])
    return True


def _delete_kind(kind: str) -> Callable[[Walk, Key], bool]:
    def delete(walk: Walk, key: Key) -> bool:
        if key in walk.gone:
            return False
        names = [name for held, name in walk.cluster.stored(key).objects if held == kind]
        if not names:
            return False
        walk.cluster.delete_object(key, kind, walk.random.choice(names))
        return True

    return delete


def _tamper(walk: Walk, key: Key) -> bool:
    if key in walk.gone:
        return False
    names = [name for kind, name in walk.cluster.stored(key).objects if kind == "ConfigMap"]
    if not names:
        return False
    walk.cluster.tamper(key, walk.random.choice(names))
    return True


def _take_names(walk: Walk, key: Key) -> bool:
    walk.cluster.num_taken_names = 1
    return True


def _conflicts(walk: Walk, key: Key) -> bool:
    walk.cluster.num_conflicts = walk.random.choice((1, 3, 7))
    return True


def _kill_operator(walk: Walk, key: Key) -> bool:
    walk.cluster.crash_at = len(walk.cluster.verbs) + walk.random.randrange(4)
    walk.cluster.crash_after = walk.random.random() < 0.5
    return True


def _refuse_jobs(walk: Walk, key: Key) -> bool:
    if key in walk.gone:
        return False
    for kind in ("Job", "JobSet", "ConfigMap"):
        walk.cluster.refuse(key, kind, walk.random.choice(("exceeded quota: team", "")))
    return True


def _lagging_watch(walk: Walk, key: Key) -> bool:
    """A Job was created a moment ago and is not in the cache: a watch is behind for moments alone."""
    for _ in range(3):
        if key in walk.gone:
            return False
        now = timestamp(walk.cluster.now)
        new = [job for job in walk.cluster.live_jobs(key) if job["metadata"]["creationTimestamp"] == now]
        if new:
            walk.cluster.hide(key, new[0]["kind"], new[0]["metadata"]["name"])
            walk.operate(key)
            walk.cluster.report(key)
            return True
        walk.pods(key)
        walk.operate(key)
    return False


def _edit_profile(walk: Walk, key: Key) -> bool:
    name = walk.random.choice(("bench", "gangs"))
    old = walk.cluster.profiles.get(name)
    if old is None:
        return False
    number = walk.random.randrange(3)
    walk.cluster.add_profile(
        old | {"spec": {**old["spec"], "trainerImage": f"registry.example/dapt-trainer:1.0.{number}"}}
    )
    return True


def _delete_profile(walk: Walk, key: Key) -> bool:
    return walk.cluster.profiles.pop(walk.random.choice(("bench", "gangs")), None) is not None


def _restore_profiles(walk: Walk, key: Key) -> bool:
    walk.add_profiles()
    return True


def _close_queue(walk: Walk, key: Key) -> bool:
    walk.cluster.queues["team"] = walk.random.choice(("", "insufficient unused quota"))
    return True


def _break_one_pod(walk: Walk, key: Key) -> bool:
    """One pod of the gang fails by itself, its peers go on; the gang is given some time to come so far."""
    key = next(known for known in walk.keys if known.name == "gang")
    for _ in range(MAX_MOVES_TO_TRAINING):
        if key in walk.gone:
            return False
        jobs = walk.cluster.live_jobs(key)
        is_gang = len(jobs) == 1 and not jobs[0]["spec"].get("suspend") and pods_of_gang(jobs[0]) > 1
        if is_gang and jobs[0]["metadata"]["name"] in walk.cluster.stored(key).read_stage_files:
            walk.cluster.break_pod(key, 1, Ends(75, message="a rank is lost", cause=Cause.INFRASTRUCTURE))
            return True
        walk.pods(key)
        walk.operate(key)
    return False


def _wait_long(walk: Walk, key: Key) -> bool:
    """A while passes in which nothing happens; the operator reconciles as it asked to."""
    for _ in range(walk.random.choice((5, 20))):
        walk.cluster.advance(60)
        for other in walk.keys:
            walk.operate(other)
    return True


OPERATIONS: Final[dict[str, Callable[[Walk, Key], bool]]] = {
    "pods move": _pods_move,
    "edit": _edit,
    "suspend": _suspend,
    "resume": _resume,
    "pin": _pin,
    "delete": _delete,
    "delete with a finalizer": _delete_slowly,
    "remove the finalizer": _collect,
    "create again": _create_again,
    "relabel the resource": _relabel_resource,
    "relabel a Job": _relabel_job,
    "self-made Job": _self_made_job,
    "delete a Job": _delete_job,
    "delete a ConfigMap": _delete_kind("ConfigMap"),
    "delete the Secret": _delete_kind("Secret"),
    "change a ConfigMap": _tamper,
    "another owner's name": _take_names,
    "conflicts": _conflicts,
    "death of the operator": _kill_operator,
    "quota of objects": _refuse_jobs,
    "watch that is behind": _lagging_watch,
    "edit a profile": _edit_profile,
    "delete a profile": _delete_profile,
    "restore the profiles": _restore_profiles,
    "queue": _close_queue,
    "eviction": _outcome(Ends(143, disrupted=True)),
    "node loss": _outcome(Ends(137, disrupted=True, lose_message=True)),
    "pod failure": _outcome(Ends(75, message="no such host", cause=Cause.INFRASTRUCTURE)),
    "crash": _outcome(Ends(1, message="ValueError: what", cause=Cause.CRASH)),
    "out of memory": _outcome(Ends(137, oom_killed=True)),
    "hang": _outcome(Ends(75, message="no step for 600 s", cause=Cause.HANG)),
    "bad input": _outcome(Ends(64, message="no such file", cause=Cause.BAD_INPUT)),
    "forgetting": _outcome(Ends(76, message="past the limit", cause=Cause.FORGETTING_LIMIT)),
    "lost message": _outcome(Ends(0, lose_message=True)),
    "sidecar": _outcome(Ends(0, lingers=True)),
    "slow pod": _outcome(Stays(pending_reason="Unschedulable: 0/3 nodes are available")),
    "one pod of a gang": _break_one_pod,
    "wait": _wait_long,
}
