"""What the operator's bench does to the API server itself: the raw floor, mass creation, and watching with a clock."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import urllib3

from testcluster.async_api import AsyncApi
from testcluster.control_plane import ControlPlane

TRY, STAGE, NAME = "dapt.dev/try", "dapt.dev/stage", "dapt.dev/adaptation"


def indexed_job(number: int, pods: int) -> dict[str, Any]:
    """An Indexed Job, as a stage's is."""
    container = {"name": "trainer", "image": "registry.example/none"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"raw-{number:04d}"},
        "spec": {
            "completionMode": "Indexed", "completions": pods, "parallelism": pods, "backoffLimit": 0,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }  # fmt: skip


def create_jobs(plane: ControlPlane, namespace: str, count: int, pods: int = 1) -> float:
    """Seconds until all pods of `count` raw Jobs exist; the first stage of an adaptation is a Job of one pod too."""
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    jobs = [indexed_job(number, pods) for number in range(count)]
    return _until_pods(plane, namespace, path, jobs, pods * count)


def create_adaptations(plane: ControlPlane, namespace: str, manifests: Sequence[dict[str, Any]]) -> float:
    """Seconds until the first stage's pod of each exists."""
    path = f"/apis/dapt.dev/v1alpha1/namespaces/{namespace}/domainadaptations"
    return _until_pods(plane, namespace, path, manifests, len(manifests))


def create_many(plane: ControlPlane, namespace: str, manifests: Sequence[dict[str, Any]]) -> None:
    """All at once."""
    path = f"/apis/dapt.dev/v1alpha1/namespaces/{namespace}/domainadaptations"
    asyncio.run(_post(plane, path, manifests))


def _until_pods(
    plane: ControlPlane, namespace: str, path: str, manifests: Sequence[dict[str, Any]], pods: int
) -> float:
    with Watcher(plane, namespace) as watcher:
        begun = time.monotonic()
        asyncio.run(_post(plane, path, manifests))
        while len(watcher.pods) < pods:
            if time.monotonic() - begun > 600:
                raise TimeoutError(f"{len(watcher.pods)} of {pods} pods after 600 s")
            time.sleep(0.01)
        return max(watcher.pods.values()) - begun


async def _post(plane: ControlPlane, path: str, manifests: Sequence[dict[str, Any]]) -> None:
    pair = plane.authority.client("bench", "bench", ("system:masters",))
    api = AsyncApi(plane.url, plane.authority_file, pair, "bench")
    await asyncio.gather(*(api.call("POST", path, manifest) for manifest in manifests))
    await api.close()


def _context(plane: ControlPlane) -> ssl.SSLContext:
    pair = plane.authority.client("bench", "bench", ("system:masters",))
    context = ssl.create_default_context(cafile=str(plane.authority_file))
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def phase(plane: ControlPlane, namespace: str, name: str) -> str:
    """status.phase."""
    return (plane.api.get("DomainAdaptation", name, namespace).get("status") or {}).get("phase", "")


def all_suspended(plane: ControlPlane, namespace: str, count: int) -> bool:
    """Whether so many say that they are suspended."""
    found = plane.api.list("DomainAdaptation", namespace)
    return sum((item.get("status") or {}).get("phase") == "Suspended" for item in found) >= count


def all_told(plane: ControlPlane, namespace: str, count: int) -> bool:
    """Whether every one is suspended, or its first stage runs."""
    told = 0
    for item in plane.api.list("DomainAdaptation", namespace):
        status = item.get("status") or {}
        stages = status.get("stages") or [{}]
        told += status.get("phase") == "Suspended" or stages[-1].get("state") == "Running"
    return told >= count


class Watcher:
    """Watches a namespace and notes when each thing was first seen, on this process' clock."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._context = _context(plane)
        self._ends = threading.Event()
        self.pods: dict[str, float] = {}
        self.jobs: dict[tuple[str, str, int], float] = {}
        """By adaptation, stage and try."""
        self.ended: dict[tuple[str, str, int], dict[str, tuple[str, float]]] = {}
        """Of each run's pods: phase and when it was seen."""
        self.reported: dict[tuple[str, str, int], float] = {}
        """Of each run: when the status first had its success."""
        self._threads = [
            threading.Thread(target=self._follow, args=(path, see), daemon=True)
            for path, see in (
                (f"/api/v1/namespaces/{namespace}/pods", self._pod),
                (f"/apis/batch/v1/namespaces/{namespace}/jobs", self._job),
                (f"/apis/dapt.dev/v1alpha1/namespaces/{namespace}/domainadaptations", self._adaptation),
            )
        ]

    def __enter__(self) -> Watcher:
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()

    def wait_for_job(self, adaptation: str, stage: str, try_number: int = 1) -> float:
        """When it was seen, on the monotonic clock."""
        end = time.monotonic() + 60
        while (adaptation, stage, try_number) not in self.jobs:
            if time.monotonic() > end:
                raise TimeoutError(f"no Job of {adaptation} {stage}")
            time.sleep(0.001)
        return self.jobs[(adaptation, stage, try_number)]

    def stage_gaps(self) -> list[float]:
        """For each run that succeeded and was followed by another one: from its last pod's end to that Job."""
        gaps = []
        for key, pods in self.ended.items():
            if any(found != "Succeeded" for found, _ in pods.values()):
                continue
            end = max(moment for _, moment in pods.values())
            later = [made for other, made in self.jobs.items() if other[0] == key[0] and other[1] != key[1]]
            following = [made for made in later if made > self.jobs[key] + 1e-9]
            if following:
                gaps.append(min(following) - end)
        return gaps

    def status_gaps(self) -> list[float]:
        """For each run that succeeded and is in the status: from its last pod's end to that status."""
        return [
            self.reported[key] - max(moment for _, moment in list(pods.values()))
            for key, pods in list(self.ended.items())
            if key in self.reported
        ]

    def restarts(self) -> list[float]:
        """From the first failed pod of a first try to the second try's Job."""
        found = []
        for (adaptation, stage, number), pods in list(self.ended.items()):
            failed = [moment for phase_, moment in list(pods.values()) if phase_ == "Failed"]
            again = self.jobs.get((adaptation, stage, number + 1))
            if number == 1 and failed and again is not None:
                found.append(again - min(failed))
        return found

    def _pod(self, pod: dict[str, Any]) -> None:
        self.pods.setdefault(pod["metadata"]["uid"], time.monotonic())
        state = pod.get("status", {}).get("phase")
        if state in ("Succeeded", "Failed"):
            ended = self.ended.setdefault(_key(pod), {})
            ended.setdefault(pod["metadata"]["name"], (state, time.monotonic()))

    def _job(self, job: dict[str, Any]) -> None:
        self.jobs.setdefault(_key(job), time.monotonic())

    def _adaptation(self, resource: dict[str, Any]) -> None:
        for run in (resource.get("status") or {}).get("stages") or []:
            if run["state"] == "Succeeded":
                key = (resource["metadata"]["name"], run["name"], run["try"])
                self.reported.setdefault(key, time.monotonic())

    def _follow(self, path: str, see: Any) -> None:
        pool = urllib3.PoolManager(ssl_context=self._context)
        answer = pool.request("GET", f"{self._plane.url}{path}?watch=true", preload_content=False)
        rest = b""
        while not self._ends.is_set():
            try:
                chunk = answer.read1()
            except urllib3.exceptions.HTTPError:
                return  # the control plane is gone
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["type"] in ("ADDED", "MODIFIED"):
                    see(event["object"])


def _key(item: dict[str, Any]) -> tuple[str, str, int]:
    labels = item["metadata"].get("labels") or {}
    return (labels.get(NAME, ""), labels.get(STAGE, ""), int(labels.get(TRY, "0")))
