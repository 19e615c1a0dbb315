"""A kubelet without containers: it plays fake nodes and moves their pods as a script says.

It writes only what a kubelet writes: its nodes, the status of pods bound to them, and the last delete of a pod
that was asked to go; and the volumes of a provisioner. What a pod refers to (Secrets, ConfigMaps) must exist
before it runs, as on a real node.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from dapt_contract.stage_file import StageFile
from dapt_operator.testing.objects import Ends, Stays
from testcluster import volumes_script
from testcluster.async_api import AsyncApi
from testcluster.control_plane import ControlPlane
from testcluster.fake_node import FakeNode
from testcluster.pod_life import (
    TRAINER,
    Life,
    PodScript,
    Reading,
    ScriptedPod,
    ended_status,
    killed_sidecars_status,
    life_of,
    lingering_status,
    now_text,
    running_status,
    runs_on,
    waiting_status,
)
from testcluster.pod_network import LogServer, PodNetwork
from testcluster.references_script import what_is_missing

AGENT = "dapt-scripted-kubelet"
STAGE_VOLUME = "stage"
PROGRESS_PORT = "progress"
LOOK_AGAIN_SECONDS = 0.3
"""Between two looks for a Secret or ConfigMap that is missing."""
KILLED = Ends(exit_code=137, lose_message=True)
STRATEGIC = {"Content-Type": "application/strategic-merge-patch+json"}


@dataclass
class _Living:
    pod: ScriptedPod
    life: Life | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_stopping: bool = False
    is_frozen: bool = False
    grace_seconds: float = 0.0
    started: str = ""
    address: str = ""
    task: asyncio.Task[None] | None = None


class ScriptedKubelet:
    """Plays nodes until its context ends; runs in a thread of its own.

    Args:
        plane: whose pods it runs.
        script: what becomes of each pod.
        nodes: one node with room for everything when not given.
    """

    def __init__(
        self, plane: ControlPlane, script: PodScript = runs_on, nodes: Sequence[FakeNode] = ()
    ) -> None:
        self.nodes = tuple(
            replace(node, name=node.name or f"fake-{secrets.token_hex(3)}") for node in nodes or (FakeNode(),)
        )
        self.errors: list[str] = []
        """What went wrong in its own work, a script's exception above all; the fixture's test fails then."""
        self.started_pods = 0
        """How many pods came to run."""
        self._plane = plane
        self._script = script
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=AGENT, daemon=True)
        self._living: dict[str, _Living] = {}
        self._lived: set[str] = set()
        self._stages: dict[tuple[str, str, str], StageFile] = {}
        self._logs: dict[tuple[str, str], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._node_names = frozenset(node.name for node in self.nodes)
        self._log_server = LogServer(self._logs, plane.serving.certificate, plane.serving.key)

    def __enter__(self) -> ScriptedKubelet:
        api = self._plane.api
        api.apply(volumes_script.STORAGE_CLASS)
        self._network = PodNetwork(self._plane.folder)
        for node in self.nodes:
            api.create(node.manifest())
            status = node.status(self._log_server.port)
            api.patch("Node", node.name, {"status": status}, subresource="status")
            # A new node is tainted as not ready; the controller that would end that does not run.
            api.patch("Node", node.name, {"spec": {"taints": None}})
        self._thread.start()
        self._wait(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._network.close()
        for node in self.nodes:
            self._plane.api.delete("Node", node.name)

    # --- what a test says while it runs ---

    @property
    def network(self) -> str:
        """Where its pods' addresses are from."""
        return str(self._network.network)

    @property
    def script(self) -> PodScript:
        """What becomes of each pod."""
        return self._script

    @script.setter
    def script(self, script: PodScript) -> None:
        self._script = script

        async def ask_again() -> None:
            for living in self._living.values():
                if living.life is not None:
                    self._decide(living, life_of(script(living.pod)))

        self._wait(ask_again())

    @property
    def pods(self) -> list[ScriptedPod]:
        """The pods on its nodes that have not ended."""

        async def look() -> list[ScriptedPod]:
            return [living.pod for living in self._living.values()]

        return self._wait(look())

    def change(self, life: Life | Ends | Stays, which: Callable[[ScriptedPod], bool] = lambda _: True) -> int:
        """Give living pods another life; returns how many."""

        async def work() -> int:
            chosen = [living for living in self._living.values() if which(living.pod)]
            for living in chosen:
                self._decide(living, life_of(life))
            return len(chosen)

        return self._wait(work())

    def freeze(self, which: Callable[[ScriptedPod], bool] = lambda _: True) -> int:
        """From now on nothing is heard of these pods, as when their node lost its power; returns how many."""

        async def work() -> int:
            chosen = [living for living in self._living.values() if which(living.pod)]
            for living in chosen:
                living.is_frozen = True
                self._network.end(living.address)
            return len(chosen)

        return self._wait(work())

    # --- inside: the loop ---

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        pair = self._plane.authority.client(AGENT, AGENT, ("system:masters",))
        self._api = AsyncApi(self._plane.url, self._plane.authority_file, pair, AGENT)
        await self._log_server.start()
        self._spawn(self._api.follow("/api/v1/pods?fieldSelector=spec.nodeName!=", self._see))
        self._spawn(self._api.follow("/api/v1/persistentvolumeclaims?", self._see_claim))

    async def _close(self) -> None:
        self._log_server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._api.close()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.errors.append(repr(task.exception()))

    def _see(self, event: str, manifest: dict[str, Any]) -> None:
        metadata = manifest["metadata"]
        if manifest["spec"].get("nodeName") not in self._node_names:
            return
        living = self._living.get(metadata["uid"])
        if event == "DELETED":
            if living is not None and living.task is not None:
                living.task.cancel()
                self._living.pop(metadata["uid"])  # a task that has not begun does not clean up
            return
        asked_to_go = metadata.get("deletionTimestamp") is not None
        if living is None:
            has_ended = manifest["status"].get("phase") in ("Succeeded", "Failed")
            # A watch may report later than the pod ended that it was running: a uid has one life.
            if not has_ended and metadata["uid"] not in self._lived:
                self._lived.add(metadata["uid"])
                living = self._living[metadata["uid"]] = _Living(ScriptedPod(manifest))
                living.task = self._spawn(self._live(living))
            elif asked_to_go:
                self._spawn(self._let_go(ScriptedPod(manifest)))
        if living is not None and asked_to_go and not living.is_stopping:
            living.is_stopping = True
            living.grace_seconds = float(metadata.get("deletionGracePeriodSeconds") or 0)
            living.changed.set()

    def _see_claim(self, event: str, claim: dict[str, Any]) -> None:
        if event == "DELETED":
            if claim["spec"].get("storageClassName") == volumes_script.CLASS:
                path = f"/api/v1/persistentvolumes/{volumes_script.volume_name(claim)}"
                self._spawn(self._api.call("DELETE", path))
        elif volumes_script.wants_volume(claim):
            body = volumes_script.volume_for(claim)
            self._spawn(self._api.call("POST", "/api/v1/persistentvolumes", body))

    # --- inside: one pod ---

    def _decide(self, living: _Living, life: Life) -> None:
        living.life = life
        living.changed.set()

    async def _live(self, living: _Living) -> None:
        try:
            end = await self._until_end(living)
            if living.is_frozen:
                await asyncio.Event().wait()
            words = living.life.words if living.life is not None else None
            started = living.started or now_text()
            if end.lingers:
                await self._report(living.pod, lingering_status(living.pod, end, started, words))
                while not living.is_stopping:
                    await self._changes_within(living, None)
                await self._report(living.pod, killed_sidecars_status(living.pod, end, started, words))
            else:
                await self._report(living.pod, ended_status(living.pod, end, started, words))
            if living.is_stopping:
                await self._let_go(living.pod)
        finally:
            self._network.end(living.address)
            self._living.pop(living.pod.uid, None)

    async def _until_end(self, living: _Living) -> Ends:
        """Follow the life, which may change at any time."""
        if not await self._prepare(living):
            return KILLED
        life = await self._start(living)
        running_since = self._loop.time()
        while life is not None:
            left = None if life.then is None else running_since + life.run_seconds - self._loop.time()
            if not await self._changes_within(living, left) and life.then is not None:
                return life.then
            life = None if living.is_stopping else living.life
            await self._serve_progress(living)
        life = living.life
        if not living.started or life is None:
            return KILLED
        await asyncio.sleep(min(life.stop_seconds, living.grace_seconds))
        return life.on_stop if life.stop_seconds <= living.grace_seconds and living.grace_seconds else KILLED

    async def _prepare(self, living: _Living) -> bool:
        """Wait for what the pod refers to and ask the script; False when it was asked to go meanwhile."""

        async def find(plural: str, name: str) -> Mapping[str, Any] | None:
            path = f"/api/v1/namespaces/{living.pod.namespace}/{plural}/{name}"
            return await self._api.call("GET", path) or None

        shown: tuple[str, str] | None = None
        while not living.is_stopping:
            missing = await what_is_missing(living.pod.manifest["spec"], find)
            if missing is None:
                living.pod = replace(living.pod, stage=await self._stage(living.pod))
                living.life = living.life or life_of(self._script(living.pod))
                return True
            if missing != shown:
                shown = missing
                await self._report(living.pod, waiting_status(living.pod, *missing))
            await self._changes_within(living, LOOK_AGAIN_SECONDS)
        return False

    async def _start(self, living: _Living) -> Life | None:
        """Let it wait or run, as its life says; None when it was asked to go meanwhile."""
        shown: tuple[str, str] | None = None
        while not living.is_stopping and living.life is not None:
            life = living.life
            if life.waiting is not None:
                if shown != life.waiting:
                    shown = life.waiting
                    await self._report(living.pod, waiting_status(living.pod, *shown))
                await self._changes_within(living, None)
            elif not await self._changes_within(living, life.start_seconds):
                living.address, living.started = self._network.take(), now_text()
                await self._serve_progress(living)
                await self._report(living.pod, running_status(living.pod, living.address, living.started))
                self.started_pods += 1
                return life
        return None

    async def _changes_within(self, living: _Living, seconds: float | None) -> bool:
        """Whether another life or a request to stop came; no limit for None."""
        if not living.changed.is_set() and (seconds is None or seconds > 0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(living.changed.wait(), seconds)
        has_changed = living.changed.is_set()
        living.changed.clear()
        return has_changed

    async def _serve_progress(self, living: _Living) -> None:
        if living.life is None:
            return
        self._logs[(living.pod.namespace, living.pod.name)] = living.life.log
        if living.life.progress is None:
            self._network.end(living.address)
            return
        trainer = next(item for item in living.pod.manifest["spec"]["containers"] if item["name"] == TRAINER)
        ports = {item.get("name"): item["containerPort"] for item in trainer.get("ports") or []}

        def reading() -> Reading:
            return living.life.progress if living.life is not None else None

        await self._network.serve(living.address, ports[PROGRESS_PORT], reading)

    async def _stage(self, pod: ScriptedPod) -> StageFile | None:
        volumes = {item["name"]: item for item in pod.manifest["spec"].get("volumes") or []}
        name = volumes.get(STAGE_VOLUME, {}).get("configMap", {}).get("name")
        if name is None:
            return None
        key = (pod.namespace, name, pod.labels.get("batch.kubernetes.io/controller-uid", ""))
        if key not in self._stages:
            found = await self._api.call("GET", f"/api/v1/namespaces/{pod.namespace}/configmaps/{name}")
            self._stages[key] = StageFile.model_validate_json(found["data"]["stage.json"])
        return self._stages[key]

    async def _report(self, pod: ScriptedPod, status: dict[str, Any]) -> None:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        body = {"metadata": {"uid": pod.uid}, "status": status}
        await self._api.call("PATCH", f"{path}/status", body, STRATEGIC)

    async def _let_go(self, pod: ScriptedPod) -> None:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        await self._api.call("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}})
