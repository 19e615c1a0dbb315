"""A kubelet without containers: it plays fake nodes and moves their pods as a script says.

It writes only what a kubelet writes: its nodes, the status of pods bound to them, and the last delete of a pod
that was asked to go.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import aiohttp

from dapt_contract.stage_file import StageFile
from dapt_operator.cluster.memory import Ends
from testcluster.control_plane import ControlPlane
from testcluster.pod_life import (
    Life,
    PodScript,
    ScriptedPod,
    ended_status,
    life_of,
    now_text,
    running_status,
    runs_on,
    waiting_status,
)

AGENT = "dapt-scripted-kubelet"
STAGE_VOLUME = "stage"
CONNECTIONS = 64
KILLED = Ends(exit_code=137, lose_message=True)
STRATEGIC = {"Content-Type": "application/strategic-merge-patch+json"}


@dataclass(frozen=True)
class FakeNode:
    """A node that is only said to exist."""

    name: str = ""
    """Random when empty."""
    cpu: str = "100000"
    memory: str = "1000Ti"
    pods: int = 100_000
    resources: Mapping[str, int] = field(default_factory=lambda: {"nvidia.com/gpu": 100_000})
    labels: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        """The Node."""
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", **self.labels}
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}}

    def status(self) -> dict[str, Any]:
        """Ready, with what it offers."""
        offered = {"cpu": self.cpu, "memory": self.memory, "pods": str(self.pods)}
        offered |= {name: str(amount) for name, amount in self.resources.items()}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "scripted"}
        return {"capacity": offered, "allocatable": offered, "conditions": [ready]}


@dataclass
class _Living:
    pod: ScriptedPod
    life: Life | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_stopping: bool = False
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
        """What went wrong in its own work; a test that uses it fails at its end when there is any."""
        self._plane = plane
        self._script = script
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=AGENT, daemon=True)
        self._living: dict[str, _Living] = {}
        self._stages: dict[tuple[str, str, str], StageFile] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> ScriptedKubelet:
        for node in self.nodes:
            self._plane.api.create(node.manifest())
            self._plane.api.patch("Node", node.name, {"status": node.status()}, subresource="status")
            # A new node is tainted as not ready; the controller that would end that does not run.
            self._plane.api.patch("Node", node.name, {"spec": {"taints": None}})
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
        for node in self.nodes:
            self._plane.api.delete("Node", node.name)

    # --- what a test says while it runs ---

    @property
    def script(self) -> PodScript:
        """What becomes of each pod."""
        return self._script

    @script.setter
    def script(self, script: PodScript) -> None:
        self._script = script

        async def ask_again() -> None:
            for living in self._living.values():
                self._decide(living, life_of(script(living.pod)))

        self._wait(ask_again())

    @property
    def pods(self) -> list[ScriptedPod]:
        """The pods on its nodes that have not ended."""

        async def look() -> list[ScriptedPod]:
            return [living.pod for living in self._living.values()]

        return self._wait(look())

    def change(self, life: Life | Ends, which: Callable[[ScriptedPod], bool] = lambda _: True) -> int:
        """Give living pods another life; returns how many."""

        async def work() -> int:
            chosen = [living for living in self._living.values() if which(living.pod)]
            for living in chosen:
                self._decide(living, life_of(life))
            return len(chosen)

        return self._wait(work())

    # --- inside: the watch ---

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        pair = self._plane.authority.client(AGENT, AGENT, ("system:masters",))
        context = ssl.create_default_context(cafile=str(self._plane.authority_file))
        context.load_cert_chain(pair.certificate, pair.key)
        self._session = aiohttp.ClientSession(
            self._plane.url,
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context),
            headers={"User-Agent": AGENT},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )
        self._spawn(self._watch())

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
        await asyncio.sleep(0.1)  # TLS connections say goodbye after `close` has returned

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.errors.append(repr(task.exception()))

    async def _watch(self) -> None:
        """List and watch all bound pods, for ever."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                listed = await self._call("GET", "/api/v1/pods?fieldSelector=spec.nodeName!=")
                for manifest in listed["items"]:
                    self._see("ADDED", manifest)
                version = listed["metadata"]["resourceVersion"]
                async for event in self._events(version):
                    if event["type"] == "ERROR":
                        break  # too old a version: list again
                    self._see(event["type"], event["object"])
            await asyncio.sleep(0.1)

    async def _events(self, version: str) -> AsyncIterator[dict[str, Any]]:
        query = f"watch=true&resourceVersion={version}&fieldSelector=spec.nodeName!="
        async with self._session.get(f"/api/v1/pods?{query}") as answer:
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)

    def _see(self, event: str, manifest: dict[str, Any]) -> None:
        metadata = manifest["metadata"]
        if manifest["spec"].get("nodeName") not in {node.name for node in self.nodes}:
            return
        living = self._living.get(metadata["uid"])
        if event == "DELETED":
            if living is not None and living.task is not None:
                living.task.cancel()
                self._forget(living)
            return
        asked_to_go = metadata.get("deletionTimestamp") is not None
        if living is None:
            if manifest["status"].get("phase") in ("Succeeded", "Failed"):
                if asked_to_go:
                    self._spawn(self._let_go(ScriptedPod(manifest)))
                return
            living = self._living[metadata["uid"]] = _Living(ScriptedPod(manifest))
            living.task = self._spawn(self._live(living))
        if asked_to_go and not living.is_stopping:
            living.is_stopping = True
            living.grace_seconds = float(metadata.get("deletionGracePeriodSeconds") or 0)
            living.changed.set()

    # --- inside: one pod ---

    def _decide(self, living: _Living, life: Life) -> None:
        living.life = life
        living.changed.set()

    async def _live(self, living: _Living) -> None:
        try:
            living.pod = replace(living.pod, stage=await self._stage(living.pod))
            if living.life is None:
                living.life = life_of(self._script(living.pod))
            end = await self._until_end(living)
            await self._report(living.pod, ended_status(living.pod, end, living.started or now_text()))
            if living.is_stopping:
                await self._let_go(living.pod)
        finally:
            self._forget(living)

    async def _until_end(self, living: _Living) -> Ends:
        """Follow the life, which may change at any time."""
        is_running_since: float | None = None
        shown: tuple[str, str] | None = None
        while not living.is_stopping:
            life = living.life
            assert life is not None
            living.changed.clear()
            if life.waiting is not None and is_running_since is None:
                if shown != life.waiting:
                    shown = life.waiting
                    await self._report(living.pod, waiting_status(living.pod, *shown))
                await living.changed.wait()
                continue
            if is_running_since is None:
                if await self._changes_within(living, life.start_seconds):
                    continue
                living.started = now_text()
                living.address = "10.200.0.1"
                await self._report(living.pod, running_status(living.pod, living.address, living.started))
                is_running_since = self._loop.time()
            if life.then is None:
                await living.changed.wait()
            elif not await self._changes_within(
                living, is_running_since + life.run_seconds - self._loop.time()
            ):
                return life.then
        life = living.life
        assert life is not None
        if is_running_since is None:
            return KILLED
        await asyncio.sleep(min(life.stop_seconds, living.grace_seconds))
        return life.on_stop if life.stop_seconds <= living.grace_seconds and living.grace_seconds else KILLED

    async def _changes_within(self, living: _Living, seconds: float) -> bool:
        if seconds <= 0:
            return living.changed.is_set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(living.changed.wait(), seconds)
            return True
        return False

    async def _stage(self, pod: ScriptedPod) -> StageFile | None:
        volumes = {item["name"]: item for item in pod.manifest["spec"].get("volumes") or []}
        name = volumes.get(STAGE_VOLUME, {}).get("configMap", {}).get("name")
        if name is None:
            return None
        key = (pod.namespace, name, pod.labels.get("batch.kubernetes.io/controller-uid", ""))
        if key not in self._stages:
            found = await self._call("GET", f"/api/v1/namespaces/{pod.namespace}/configmaps/{name}")
            self._stages[key] = StageFile.model_validate_json(found["data"]["stage.json"])
        return self._stages[key]

    async def _report(self, pod: ScriptedPod, status: dict[str, Any]) -> None:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        body = {"metadata": {"uid": pod.uid}, "status": status}
        await self._call("PATCH", f"{path}/status", body, STRATEGIC)

    async def _let_go(self, pod: ScriptedPod) -> None:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        await self._call("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}})

    def _forget(self, living: _Living) -> None:
        self._living.pop(living.pod.uid, None)

    async def _call(self, method: str, path: str, body: Any = None, headers: Any = None) -> Any:
        """One request; an object that is gone or was replaced meanwhile is nobody's error."""
        async with self._session.request(method, path, json=body, headers=headers) as answer:
            content = await answer.json()
            if answer.status in (404, 409):
                return {}
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {content.get('message')}")
            return content
