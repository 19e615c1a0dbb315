"""One adaptation before an API server in the process, in simulated time: the own client, cache, lists and Lease.

Every request goes through a socket. Time passes only where somebody waits: the pauses between attempts, a request that
is not answered, the work queue's backoff, the Lease's thread, the pods. So a fault costs in simulated seconds what it
would cost on a clock, and a test takes none of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import urllib3

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.cluster.kubernetes import (
    Connection,
    KubernetesCluster,
    Leadership,
    NotLeaderError,
    Store,
    client,
    lease,
)
from dapt_operator.cluster.kubernetes import cluster as cluster_module
from dapt_operator.cluster.kubernetes.connection import Authorization
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.port import Key
from dapt_operator.last_plans import LastPlans
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.reconcile import reconcile
from dapt_operator.runtime.operator import NOT_LEADER_SECONDS
from dapt_operator.runtime.watching.store_updater import StoreUpdater
from dapt_operator.runtime.work_queue import Urgency, backoff_seconds
from dapt_operator.stage_run import HOLDER_KINDS, JsonObject
from dapt_operator.testing.cluster import START
from dapt_operator.testing.kubelet import MemoryKubelet
from dapt_operator.testing.objects import Ends, Stays, Stored, may_run
from support.api_double import ApiDouble, Odd, Request
from support.builders import adaptation, facts_for, profile

KEY: Final = Key("health", "clinical")
UID: Final = "00000001-uid"
RESOURCE: Final = KINDS["DomainAdaptation"].path(KEY.namespace, KEY.name)
SILENCE_SECONDS: Final = 0.05
"""How long a client of these tests listens to a server that says nothing; it counts as the client's own limit."""
LONGEST_SECONDS: Final = 20_000.0
PAUSE_SECONDS: Final = 1.0
"""Of the thread that lists: how often it is checked whether a list is due."""


class SimulatedTime:
    """A clock that stands still unless somebody waits.

    The test's thread moves it; the Lease's thread is woken when its time has come, and the clock goes on once that
    thread waits again or has ended. No other thread waits.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._condition = threading.Condition()
        self._wakes: dict[threading.Thread, float] = {}
        self._main = threading.current_thread()

    def now(self) -> float:
        return self.seconds

    def moment(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def sleep(self, seconds: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Wait in simulated time, or until `is_over`."""
        if threading.current_thread() is self._main:
            self._advance(seconds)
            return
        me = threading.current_thread()
        if me.name != "lease":
            return  # it ends its work and then waits for more, which no clock brings
        with self._condition:
            self._wakes[me] = self.seconds + seconds
            self._condition.notify_all()
            self._condition.wait_for(lambda: me not in self._wakes or is_over())
            self._wakes.pop(me, None)

    def wake_all(self) -> None:
        """Let every waiting thread ask again whether its wait is over."""
        with self._condition:
            self._condition.notify_all()

    def wait_for_sleeper(self) -> None:
        """Wait until another thread waits."""
        with self._condition:
            assert self._condition.wait_for(lambda: bool(self._wakes), 60)

    def _advance(self, seconds: float) -> None:
        target = self.seconds + seconds
        with self._condition:
            while self._wakes:
                thread = min(self._wakes, key=lambda sleeper: self._wakes[sleeper])
                if self._wakes[thread] > target:
                    break
                self.seconds = max(self.seconds, self._wakes.pop(thread))
                self._condition.notify_all()
                waits_again = partial(self._waits_or_has_ended, thread)
                assert self._condition.wait_for(waits_again, 60)
            self.seconds = target

    def _waits_or_has_ended(self, thread: threading.Thread) -> bool:
        return thread in self._wakes or not thread.is_alive()

    def event_type(self) -> Callable[[], Any]:
        """A `threading.Event` whose waits are in simulated time."""
        time = self

        class Event(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                if not self.is_set():
                    time.sleep(timeout or 0.0, self.is_set)
                return self.is_set()

            def set(self) -> None:
                super().set()
                time.wake_all()

        return Event


class Pool:
    """A pool of connections whose waits for answers are in simulated time."""

    def __init__(self, pool: urllib3.PoolManager, world: ApiWorld) -> None:
        self._pool = pool
        self._world = world

    def urlopen(self, method: str, url: str, *, timeout: urllib3.Timeout, **options: Any) -> Any:
        self._world.time.sleep(self._world.delay_seconds(method, url))
        # A server that stays silent on purpose is not worth waiting for, and a slow one is no fault of these tests.
        read_seconds = SILENCE_SECONDS if self._world.is_silent_about_next(method, url) else 60.0
        try:
            return self._pool.urlopen(
                method, url, timeout=urllib3.Timeout(connect=60, read=read_seconds), **options
            )
        except urllib3.exceptions.TimeoutError:
            self._world.time.sleep(float(timeout.total or 0))  # type: ignore[arg-type]
            raise

    def clear(self) -> None:
        self._pool.clear()


@dataclass(frozen=True)
class PatientConnection(Connection):
    """A connection with such a pool."""

    world: ApiWorld | None = None

    def pool(self, max_connections: int) -> Any:
        assert self.world is not None
        return Pool(super().pool(max_connections), self.world)


class Token(Authorization):
    """A token that is replaced now and then, and a file that has the new one a moment later."""

    def __init__(self, time: SimulatedTime) -> None:
        self._time = time
        self.accepted = 1
        self.changed_at = 0.0
        self._sent = 1

    def header(self) -> str:
        return f"Bearer {self._sent}"

    def renew(self) -> None:
        if self._time.now() >= self.changed_at:
            self._sent = self.accepted

    def replace(self, after_seconds: float) -> None:
        """Accept another token from now on; the file has it after so many seconds."""
        self.accepted += 1
        self.changed_at = self._time.now() + after_seconds


class Kubelet(MemoryKubelet):
    """Plays kubelet and Job controller on what the API server holds."""

    def __init__(self, world: ApiWorld) -> None:
        self._world = world
        super().__init__(START)

    @property
    def now(self) -> datetime:
        return self._world.time.moment()

    @now.setter
    def now(self, _: datetime) -> None:
        pass  # the world's clock is the only one

    def advance(self, seconds: float) -> None:
        self._world.advance(seconds)


class ApiWorld:
    """A whole life; `live` goes on to its end.

    Args:
        monkeypatch: puts the simulated time in the place of the real one.
        double: the API server.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, double: ApiDouble, **spec: Any) -> None:
        self.time = SimulatedTime()
        self._num_silent = 0
        self._silent: list[str] = []
        self.delay_seconds: Callable[[str, str], float] = lambda method, url: 0.0
        """How long an answer takes, by method and URL."""
        self.double = double
        event = self.time.event_type()
        for module in (client, lease):
            namespace = {name: getattr(threading, name) for name in ("Thread", "current_thread")}
            monkeypatch.setattr(module, "threading", SimpleNamespace(**namespace, Event=event))
        monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=self.time.now))
        monkeypatch.setattr(client, "random", SimpleNamespace(random=lambda: 0.5))
        monkeypatch.setattr(cluster_module, "datetime", SimpleNamespace(now=lambda _: self.time.moment()))
        self.token = Token(self.time)
        self.stored = Stored({})
        self.kubelet = Kubelet(self)
        self.is_watching: Callable[[], bool] = lambda: True
        """Whether the watches report what happens."""
        self.feed: Callable[[int, str, JsonObject], list[tuple[str, JsonObject]]] = (
            lambda number, kind, body: [(kind, body)]
        )
        """What the watches report of a change, by its number."""
        self.resync_seconds = 600.0
        self.due: float | None = 0.0
        """When the operator reconciles next; None: only when something changes."""
        self.last_plans = LastPlans()
        self.failures = 0
        self.errors: list[str] = []
        """Of all reconciles that failed."""
        self.is_suspended = False
        self._delivered = 0
        self._started: set[str] = set()
        double.add(
            KINDS["AdaptationProfile"].path(None, "bench"),
            profile() | {"metadata": {"name": "bench", "uid": "profile"}},
        )
        resource = adaptation(**({"cleanup": {"afterSeconds": 30}} | spec))
        resource["metadata"] |= {"uid": UID, "generation": 1}
        double.add(RESOURCE, resource)
        self.start_operator()

    # --- the operator ---

    def start_operator(self) -> None:
        """Start an operator that knows nothing yet."""
        connection = PatientConnection(self.double.url, self.token, world=self)
        self.lease = Leadership(connection, "dapt-system", "dapt", "me", clock=self.time.now)
        self.lease.start(on_lost=lambda: self.errors.append("the Lease is lost"))
        self.time.wait_for_sleeper()
        self.store = Store()
        self.cluster = KubernetesCluster(
            connection,
            self.store,
            on_change=lambda key: self.wake(),
            may_write=self.lease.is_held,
            namespaces=(KEY.namespace,),
            clock=self.time.now,
        )
        self.updater = StoreUpdater(self.store, self._wake)

    def close(self) -> None:
        self.lease.stop()
        self.cluster.close()

    def silence_next(self, count: int) -> None:
        """Leave the next requests without an answer."""
        self._num_silent = count

        def interfere(request: Request) -> Odd | None:
            if str(request) not in self._silent:
                return None
            self._silent.remove(str(request))
            return Odd(silent=True)

        self.double.interfere = interfere

    def is_silent_about_next(self, method: str, url: str) -> bool:
        """Whether the server will not answer a request that is about to be sent."""
        if self._num_silent == 0:
            return False
        self._num_silent -= 1
        self._silent.append(f"{method} {urlsplit(url).path}")
        return True

    def _wake(self, key: Key, *, urgency: Urgency) -> None:
        self.wake()

    def wake(self) -> None:
        """Something changed: reconcile, but not before a failure's backoff is over."""
        if self.failures == 0:
            self.due = self.time.now()

    def operate(self) -> bool:
        """Let the operator do what is due; return whether it has reconciled."""
        self._deliver()
        if self.cluster.lists.list_due(self.resync_seconds).changed:
            self.wake()
        if not self.cluster.lists.has_listed(KEY.namespace) or self.due is None or self.due > self.time.now():
            return False
        try:
            plan = reconcile(self.cluster, KEY, LAUNCHERS, last_plans=self.last_plans)
        except NotLeaderError:
            self.due = self.time.now() + NOT_LEADER_SECONDS
            return True
        except Exception as error:
            self.failures += 1
            self.errors.append(f"{type(error).__name__}: {error}")
            self.due = self.time.now() + backoff_seconds(self.failures)
            return True
        self.failures = 0
        self.due = None if plan.requeue_after is None else self.time.now() + plan.requeue_after
        return True

    def _deliver(self) -> None:
        """Let the watches report what has changed since they were last asked."""
        while self.is_watching() and self._delivered < len(self.double.changes):
            number = self._delivered
            self._delivered += 1
            for kind, body in self.feed(number, *self.double.changes[number]):
                (self.updater.put if kind == "put" else self.updater.remove)(body)

    # --- everybody else ---

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.time.sleep(seconds)
        self.double.time = timestamp(self.time.moment())

    @property
    def resource(self) -> JsonObject:
        return self.double.objects[RESOURCE]

    @property
    def status(self) -> JsonObject:
        return self.resource.get("status") or {}

    def run_pods(self) -> int:
        """Let pods start, run and end, and collect those of deleted Jobs; return how many runs ended."""
        objects = self.double.objects
        before = {path: body for path, body in objects.items() if body.get("kind") in (*HOLDER_KINDS, "Pod")}
        self.stored.objects = {
            (body["kind"], body["metadata"]["name"]): _copied(body)
            for body in objects.values()
            if "kind" in body and body["kind"] in KINDS
        }
        ended = self.kubelet.run_gangs(self.stored, self._script, 30.0)
        jobs = {item["metadata"]["uid"] for (kind, _), item in self.stored.objects.items() if kind == "Job"}
        for path, body in before.items():
            new = self.stored.objects.pop((body["kind"], body["metadata"]["name"]), None)
            is_orphan = body["kind"] == "Pod" and body["metadata"]["ownerReferences"][0]["uid"] not in jobs
            if new is None or is_orphan:
                self.double.remove(path)
            elif new != body:
                self.double.add(path, new)
        for (kind, name), item in self.stored.objects.items():
            if kind == "Pod":
                self.double.add(KINDS["Pod"].path(KEY.namespace, name), {"apiVersion": "v1", **item})
        return ended

    def _script(self, stage: StageFile) -> Ends | Stays:
        if stage.run.key not in self._started:
            self._started.add(stage.run.key)
            return Stays()
        if self.resource["spec"].get("suspend"):
            return Stays()  # whether it ends by itself before it is stopped must not depend on a fault
        if stage.kind == "pretrain" and stage.run.try_number == 1:
            return Ends(75, message="a rank is lost", cause=Cause.INFRASTRUCTURE)
        return Ends(facts=facts_for(stage))

    def edit(self, **changes: Any) -> None:
        """Change the spec, as a user does."""
        resource = _copied(self.resource)
        resource["spec"] |= changes
        resource["metadata"]["generation"] += 1
        self.double.add(RESOURCE, resource)

    def live(self, on_step: Callable[[], None] = lambda: None) -> float:
        """Live to the end; return how many simulated seconds it took."""
        while self.time.now() < LONGEST_SECONDS:
            on_step()
            if self.operate():
                continue
            if (self.status.get("ledger") or {}).get("cleaned") and self.due is None:
                return self.time.now()
            running = self._running()
            if running == "finetune" and not self.is_suspended:
                self.is_suspended = True
                self.run_pods()
                self.edit(suspend=True)
            elif self.is_suspended and self.resource["spec"].get("suspend") and running is None:
                self.edit(suspend=False)
            elif not self.run_pods():
                wait = PAUSE_SECONDS if self.due is None else self.due - self.time.now()
                self.advance(min(max(wait, 0.05), PAUSE_SECONDS))
        raise AssertionError(f"no end after {LONGEST_SECONDS:.0f} s: {self.errors[-3:]}")

    def _running(self) -> str | None:
        """The stage whose Job is live, suspended ones left out."""
        bodies = list(self.double.objects.values())
        for job in [body for body in bodies if body.get("kind") == "Job"]:
            pods = [
                body
                for body in bodies
                if body.get("kind") == "Pod"
                and body["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
            ]
            if may_run({"status": {}, **job}, pods):
                return str(job["metadata"]["labels"]["dapt.dev/stage"])
        return None

    def end(self) -> JsonObject:
        """What must be the same at the end of each life."""
        status = self.status
        kept: JsonObject = {
            name: status.get(name) for name in ("phase", "selected", "output", "frozen", "candidates")
        }
        kept["stages"] = sorted((one["name"], one["state"], one["try"]) for one in status["stages"])
        kept["conditions"] = [(c["type"], c["status"], c["reason"]) for c in status["conditions"]]
        kept["objects"] = sorted(
            path
            for path, body in self.double.objects.items()
            if body.get("kind") not in ("Lease", "Event")
            and not path.startswith(KINDS["Event"].collection(KEY.namespace))
        )
        posted = [str(request.body["metadata"]["name"]) for request in self.double.sent("POST .*/jobs$")]
        kept["jobs"] = sorted(set(posted))
        return kept


def _copied(body: JsonObject) -> JsonObject:
    copied: JsonObject = json.loads(json.dumps(body))
    if copied.get("kind") in HOLDER_KINDS:
        copied.setdefault("status", {})
    return copied
