"""The operator's figures on a real control plane, in pairs with the raw API in the same run.

etcd, API server, controller-manager and scheduler (their client limits raised) run on this machine with a scripted
kubelet; the operator is a process beside them. The floor is an async client that creates Indexed Jobs of one pod, as
many as the first stage has.

    python -m bench.operator [--sizes 1,100,500,1000] [--present 1000] [--only single,requests]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

import psutil

from bench import operator_raw as raw
from dapt_contract.pod.failure import Cause
from dapt_operator.testing.objects import Ends
from support.builders import adaptation, facts_for, profile
from testcluster.audit import Request
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.pod_life import Life, ScriptedPod
from testcluster.waiting import eventually

AGENT = "dapt-operator"
RATIO_BAR = 0.6
"""Of the rate at which the API server makes the pods of raw Jobs, 500 at once: pods of first stages. 0.8 is the aim."""
SINGLE_BAR_SECONDS = 0.15
REQUESTS_BAR, FIRST_REQUESTS_BAR = 6.0, 10.0
DELETION_BAR = 3.0
NEXT_MEDIAN_BAR_SECONDS, NEXT_P95_BAR_SECONDS = 0.1, 0.3
STATUS_P99_BAR_SECONDS = 2.0
NEW_GANG_BAR_SECONDS = 1.5
MEMORY_BAR_MIB = 250.0
SPEC: dict[str, Any] = {
    "model": {"source": "s3://models/base"},
    "corpus": {"domain": [{"source": "s3://text/d.jsonl"}], "general": [{"source": "s3://text/g.jsonl"}]},
    "pretraining": {"globalBatchSize": 16},
    "evaluation": {
        "domain": {"tasks": [{"name": "codes", "source": "s3://eval/codes.jsonl"}]},
        "general": {"tasks": [{"name": "general", "source": "s3://eval/general.jsonl"}]},
    },
    "finetuning": {"data": [{"source": "s3://text/i.jsonl"}]},
    "output": {"destination": "s3://out/model"},
    "resources": {"nodes": 2, "gpusPerNode": 2},
}


def ends_well_soon(pod: ScriptedPod) -> Life:
    """The same after a second, so that every stage is seen running."""
    return Life() if pod.stage is None else Life(then=Ends(facts=facts_for(pod.stage)), run_seconds=1.0)


def figure(name: str, value: float, bar: float, *, at_least: bool = False) -> None:
    """One line: NAME VALUE BAR ok|short."""
    good = value >= bar if at_least else value <= bar
    print(f"operator.{name} {value:.3f} {bar:g} {'ok' if good else 'short'}", flush=True)


def note(text: str) -> None:
    """What goes beside the figures."""
    print(text, file=sys.stderr, flush=True)


def runs(_: ScriptedPod) -> Life:
    """Every pod runs on."""
    return Life()


def ends_well(pod: ScriptedPod) -> Life:
    """Every pod ends at once with what a healthy stage says."""
    return Life() if pod.stage is None else Life(then=Ends(facts=facts_for(pod.stage)))


@contextmanager
def fresh_plane() -> Iterator[ControlPlane]:
    """A control plane with our definitions and a profile; nothing of one figure weighs on the next."""
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    storage = {"existingClaim": None, "claimTemplate": claim}
    with ControlPlane(fast=True) as plane:
        plane.install_crds()
        plane.api.apply(profile(storage=storage, terminationGracePeriodSeconds=1))
        yield plane


@contextmanager
def stage(
    plane: ControlPlane, script: Callable[[ScriptedPod], Life] | None
) -> Iterator[tuple[str, OperatorProcess]]:
    """A namespace of its own, the operator, and a kubelet unless `script` is None."""
    name = f"bench-{time.monotonic_ns()}"
    plane.make_namespace(name)
    with ExitStack() as stack:
        if script is not None:
            stack.enter_context(ScriptedKubelet(plane, script))
        operator = stack.enter_context(OperatorProcess(plane, [name], flags=["--log-level=info"]))
        operator.wait_for("acting")
        yield name, operator


def make(namespace: str, number: int, **over: Any) -> dict[str, Any]:
    """One adaptation."""
    made = adaptation(f"a{number:04d}", **(SPEC | over))
    made["metadata"]["namespace"] = namespace
    return made


# --- the figures ---


def creation(plane: ControlPlane, count: int) -> None:
    """So many adaptations at once, until the pods of their first stage exist; the raw floor on a plane of its own."""
    with fresh_plane() as other:
        floor = raw.create_jobs(other, other.make_namespace("floor"), count)
    with stage(plane, None) as (namespace, operator):
        mark = plane.audit.mark()
        mine = raw.create_adaptations(plane, namespace, [make(namespace, i) for i in range(count)])
        memory = psutil.Process(operator.process.pid).memory_info().rss / 2**20
        ours = [
            r for r in answered(plane.audit.requests(mark)) if r.agent == AGENT and r.namespace == namespace
        ]
    rate, floor_rate = count / mine, count / floor
    note(
        f"{count} at once: all first pods after {mine:.2f} s ({rate:.1f}/s); raw Jobs of one pod {floor:.2f} s"
        f" ({floor_rate:.1f}/s); {len(ours) / count:.1f} requests an adaptation; operator {memory:.0f} MiB"
    )
    if count == 500:
        figure("share_of_raw_rate_at_500", rate / floor_rate, RATIO_BAR, at_least=True)


def single(plane: ControlPlane, times: int = 15) -> None:
    """From the answer to `create` until the Job is there, one adaptation at a time."""
    with stage(plane, None) as (namespace, _), raw.Watcher(plane, namespace) as watcher:
        seconds = []
        for number in range(times):
            made = make(namespace, number)
            plane.api.create(made)
            begun = time.monotonic()
            job = watcher.wait_for_job(made["metadata"]["name"], "destination")
            seconds.append(job - begun)
            time.sleep(0.2)
    note(f"create to Job: {', '.join(f'{s:.3f}' for s in seconds)}")
    figure("create_to_job_seconds_median", statistics.median(seconds), SINGLE_BAR_SECONDS)


def answered(ours: Iterable[Request]) -> list[Request]:
    """Requests with their answers, without watches."""
    return [r for r in ours if r.stage == "ResponseComplete" and r.verb != "watch"]


def deletions(ours: Sequence[Request]) -> list[Request]:
    """What ended runs cost: each deletion, and the read of a ConfigMap right before it is deleted."""
    found: list[Request] = []
    done = answered(ours)
    for number, request in enumerate(done):
        if request.verb == "delete":
            same = [r for r in done[:number] if (r.verb, r.path) == ("get", request.path)]
            found += [*same[-1:], request]
    return found


def requests_by_stage(ours: Sequence[Request]) -> list[int]:
    """A stage's requests go from its ConfigMap to what is written when it has ended; what all share is the first's.

    The reconcile that ends a stage makes the next one's ConfigMap and Job, then writes the status and the Events: those
    belong to the stage that ended.
    """
    of_ended_runs = deletions(ours)
    done = [r for r in answered(ours) if r not in of_ended_runs]
    starts = [i for i, r in enumerate(done) if (r.verb, r.resource) == ("create", "configmaps")]
    counts = [0] * len(starts)
    for number in range(len(done)):
        stage_number = max(0, sum(start <= number for start in starts) - 1)
        first = starts[stage_number]
        told = [i for i in range(first, number + 1) if done[i].verb == "update"]
        ends_the_one_before = stage_number > 0 and number >= first + 2 and len(told) <= 1
        counts[stage_number - 1 if ends_the_one_before else stage_number] += 1
    return counts


def requests(plane: ControlPlane, times: int = 5) -> None:
    """Requests of the operator for each stage of a whole life, from the audit log; the median of a few lives.

    A scheduler that is slow once costs one more write of the status in one life.
    """
    with stage(plane, ends_well_soon) as (namespace, _):
        lives, removals = [], []
        for number in range(times):
            mark, name = plane.audit.mark(), f"a{number:04d}"
            plane.api.create(make(namespace, number))

            def is_published(name: str = name) -> bool:
                return raw.phase(plane, namespace, name) == "Published"

            eventually(is_published, name, seconds=120)
            time.sleep(1)
            ours = [
                r for r in plane.audit.requests(mark)
                if r.agent == AGENT and r.namespace == namespace and not r.resource.endswith("/leases")
            ]  # fmt: skip
            lives.append(requests_by_stage(ours))
            removals.append(len(deletions(ours)) / len(lives[-1]))
            note(f"requests by stage: {lives[-1]}, {sum(lives[-1])} in all")
    stages = [statistics.median(counts) for counts in zip(*lives, strict=True)]
    figure("requests_first_stage", stages[0], FIRST_REQUESTS_BAR)
    figure("requests_each_later_stage_max", max(stages[1:]), REQUESTS_BAR)
    figure("requests_to_delete_a_run", statistics.median(removals), DELETION_BAR)


def transitions(plane: ControlPlane, present: int, lives: int = 40, between_seconds: float = 2.0) -> None:
    """With `present` resources: from a stage's last pod succeeded to the next stage's Job.

    Stages end at once, so a life begun every two seconds is four stages a second, which takes half of two cores, most
    of it for the API server and the Job controller. At four times the pace the machine is full and the figure would be
    the length of the API server's queue.
    """
    with stage(plane, ends_well) as (namespace, _):
        idle = [make(namespace, i, suspend=True) for i in range(present - lives)]
        raw.create_many(plane, namespace, idle)
        eventually(lambda: raw.all_suspended(plane, namespace, len(idle)), "the idle ones", seconds=300)
        with raw.Watcher(plane, namespace) as watcher:
            for number in range(present - lives, present):
                plane.api.create(make(namespace, number))
                time.sleep(between_seconds)
            last = f"a{present - 1:04d}"
            eventually(lambda: raw.phase(plane, namespace, last) == "Published", "the last life", seconds=300)
            gaps = sorted(watcher.stage_gaps())
    p95 = gaps[int(0.95 * len(gaps))]
    note(f"{len(gaps)} transitions with {present} present: max {gaps[-1]:.3f} s")
    figure("stage_to_stage_seconds_median", statistics.median(gaps), NEXT_MEDIAN_BAR_SECONDS)
    figure("stage_to_stage_seconds_p95", p95, NEXT_P95_BAR_SECONDS)


def from_event_to_status(plane: ControlPlane, active: int = 200, seconds: float = 240.0) -> None:
    """Measure from a stage's last pod succeeded to its status, with `active` at work for a minute a stage."""

    def works_a_minute(pod: ScriptedPod) -> Life:
        if pod.stage is None:
            return Life()
        spread = zlib.crc32(pod.name.encode()) % 40
        return Life(then=Ends(facts=facts_for(pod.stage)), run_seconds=40.0 + spread)

    with stage(plane, works_a_minute) as (namespace, _):
        raw.create_many(plane, namespace, [make(namespace, i) for i in range(active)])
        eventually(lambda: raw.all_told(plane, namespace, active), "a running stage of each", seconds=300)
        with raw.Watcher(plane, namespace) as watcher:
            time.sleep(seconds)
            gaps = sorted(watcher.status_gaps())
    p99 = gaps[math.ceil(0.99 * len(gaps)) - 1]
    middle = statistics.median(gaps)
    note(f"{len(gaps)} stages ended with {active} at work: median {middle:.3f} s, max {gaps[-1]:.3f} s")
    figure("event_to_status_seconds_p99", p99, STATUS_P99_BAR_SECONDS)


def new_gang(plane: ControlPlane, times: int = 10) -> None:
    """From the first failed pod of a gang of two to the Job of the next try; grace period 0 for the peer."""
    failures: dict[str, int] = {}

    def script(pod: ScriptedPod) -> Life:
        if pod.stage is None or pod.stage.kind != "pretrain":
            return ends_well(pod)
        if pod.stage.run.try_number == 1 and pod.index == 1:
            failures[pod.job] = 1
            lost = Ends(exit_code=75, cause=Cause.INFRASTRUCTURE, message="lost its network")
            return Life(then=lost, run_seconds=1.0)
        return Life()

    with stage(plane, script) as (namespace, _), raw.Watcher(plane, namespace) as watcher:
        for number in range(times):
            plane.api.create(make(namespace, number))
            time.sleep(0.7)
        eventually(lambda: len(watcher.restarts()) >= times, "all new gangs", seconds=120)
        seconds = sorted(watcher.restarts())
    note(f"first failed pod to the new gang's Job: {', '.join(f'{s:.2f}' for s in seconds)}")
    figure("failed_pod_to_new_gang_seconds_max", seconds[-1], NEW_GANG_BAR_SECONDS)


def quiet(plane: ControlPlane, present: int, seconds: float) -> None:
    """So many resources at rest: what is written, and what the operator weighs."""
    with stage(plane, runs) as (namespace, operator):
        idle = [make(namespace, i, suspend=i % 2 == 0) for i in range(present)]
        raw.create_many(plane, namespace, idle)
        eventually(lambda: raw.all_told(plane, namespace, present), "all of them", seconds=600)
        time.sleep(90)  # a resync and what it brings
        mark = plane.audit.mark()
        time.sleep(seconds)
        writes = [
            r for r in plane.audit.requests(mark)
            if r.agent == AGENT and r.is_write and not r.resource.endswith("/leases")
        ]  # fmt: skip
        memory = psutil.Process(operator.process.pid).memory_info().rss / 2**20
    for request in writes[:5]:
        note(f"wrote: {request.verb} {request.resource} {request.name}")
    note(f"{present} resources, half of them with a running stage, for {seconds:g} s")
    figure("writes_while_quiet", len(writes), 0)
    figure("memory_mib_at_1000", memory, MEMORY_BAR_MIB)


def main() -> int:
    """All figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.operator")
    parser.add_argument("--sizes", default="1,100,500,1000")
    parser.add_argument("--present", type=int, default=1000)
    parser.add_argument("--only", default=[], type=lambda text: text.split(",") if text else [])
    options = parser.parse_args()
    parts: dict[str, Callable[[ControlPlane], None]] = {
        "single": single,
        "requests": requests,
        "new-gang": new_gang,
        **{f"creation-{n}": partial(creation, count=int(n)) for n in options.sizes.split(",")},
        "transitions": partial(transitions, present=options.present),
        "event-to-status": from_event_to_status,
    }
    for name, part in parts.items():
        if not options.only or name.partition("-")[0] in options.only or name in options.only:
            with fresh_plane() as plane:
                part(plane)
    return 0


if __name__ == "__main__":
    sys.exit(main())
