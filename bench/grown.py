"""A thousand grown adaptations on a real control plane: what the operator weighs, and how long it takes to know them.

Each has twenty checkpoints with sixteen tasks. Four of five have finished; the others verify their final model, in Jobs
of their own, whose pods a scripted kubelet runs.

    python -m bench.grown [--present 1000] [--active 200] [--seconds 600]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import urllib.request
from typing import Any

import psutil

from bench.operator import AGENT, figure, fresh_plane, note, runs  # first: it finds the tests' helpers
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.reconcile import reconcile
from dapt_operator.testing.cluster import MemoryCluster
from support.builders import adaptation, profile
from support.grown import GROWN, grown_script
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.waiting import eventually

MEMORY_BAR_MIB = 250.0
SCRAPE_BAR_SECONDS = 1.0
START_BAR_SECONDS = 30.0
CPU_BAR_FRACTION = 0.05
STATUS_MEDIAN_BAR_BYTES, STATUS_MAX_BAR_BYTES = 32 * 1024, 96 * 1024
ACTIVE_STAGE = "verify"


def grown_statuses() -> tuple[dict[str, Any], dict[str, Any]]:
    """The status while the final model is verified, and the one at the end; of one adaptation, lived in memory."""
    cluster, script = MemoryCluster(), grown_script()
    cluster.add_profile(profile())
    key = cluster.add(adaptation(**GROWN))
    active: dict[str, Any] = {}
    while True:
        plan = reconcile(cluster, key, LAUNCHERS, local=False)
        if not plan.is_empty:
            continue
        if plan.requeue_after is None:
            return active, cluster.status(key)
        live = cluster.live_jobs(key)
        if live and live[0]["metadata"]["labels"]["dapt.dev/stage"] == ACTIVE_STAGE:
            active = copy.deepcopy(cluster.status(key))
        cluster.run_pods(key, script)
        cluster.advance(plan.requeue_after)


def scrape_seconds(port: int) -> tuple[float, int]:
    """Seconds of one scrape, and its lines."""
    begun = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=300) as answer:
        lines = answer.read().count(b"\n")
    return time.monotonic() - begun, lines


def grown(plane: ControlPlane, present: int, num_active: int, seconds: float) -> None:
    """All figures of one operator."""
    active, ended = grown_statuses()
    sizes = sorted(len(json.dumps(item, separators=(",", ":"))) for item in (active, ended))
    note(f"status in bytes: {sizes[0]:,} finished, {sizes[1]:,} while it is worked on")
    figure("grown.status_bytes_median", sizes[0], STATUS_MEDIAN_BAR_BYTES)
    figure("grown.status_bytes_max", sizes[1], STATUS_MAX_BAR_BYTES)
    namespace = plane.make_namespace("grown")
    for number in range(present):
        made = adaptation(f"a{number:04d}", **GROWN)
        made["metadata"]["namespace"] = namespace
        stored = plane.api.create(made)
        status = active if number < num_active else ended
        digests = {**status["digests"], "owner": f"{namespace}/dapt"}
        path = plane.api.path("DomainAdaptation", namespace, made["metadata"]["name"])
        plane.api.request("PUT", f"{path}/status", {**stored, "status": {**status, "digests": digests}})
    begun = time.monotonic()
    with (
        ScriptedKubelet(plane, runs),
        OperatorProcess(plane, [namespace], flags=["--log-level=info"]) as operator,
    ):
        operator.wait_for("acting", seconds=300)
        figure("grown.start_to_acting_seconds", time.monotonic() - begun, START_BAR_SECONDS)
        port = operator.lines("started")[0]["port"]
        first_scrape, lines = scrape_seconds(port)
        figure("grown.first_scrape_seconds", first_scrape, SCRAPE_BAR_SECONDS)

        def all_run() -> bool:
            pods = plane.api.list("Pod", namespace)
            return sum(pod["status"].get("phase") == "Running" for pod in pods) >= num_active

        eventually(all_run, "a pod of each active one", seconds=600)
        time.sleep(60)  # what their start brings
        process = psutil.Process(operator.process.pid)
        cpu, mark, quiet_from = process.cpu_times(), plane.audit.mark(), time.monotonic()
        time.sleep(seconds)
        used = process.cpu_times()
        share = (used.user + used.system - cpu.user - cpu.system) / (time.monotonic() - quiet_from)
        writes = [
            request
            for request in plane.audit.requests(mark)
            if request.agent == AGENT and request.is_write and not request.resource.endswith("/leases")
        ]
        for request in writes[:5]:
            note(f"wrote: {request.verb} {request.resource} {request.name}")
        later_scrape, _ = scrape_seconds(port)
        note(
            f"{present} adaptations, {num_active} of them active, quiet for {seconds:g} s; {lines} lines a scrape"
        )
        figure("grown.later_scrape_seconds", later_scrape, SCRAPE_BAR_SECONDS)
        figure("grown.idle_cpu_fraction", share, CPU_BAR_FRACTION)
        figure("grown.writes_while_quiet", len(writes), 0)
        figure("grown.memory_mib", process.memory_info().rss / 2**20, MEMORY_BAR_MIB)


def main() -> int:
    """All figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.grown")
    parser.add_argument("--present", type=int, default=1000)
    parser.add_argument("--active", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    with fresh_plane() as plane:
        grown(plane, options.present, options.active, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
