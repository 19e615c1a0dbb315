"""What the operator's process weighs with a thousand grown adaptations, in a minute and without a cluster.

The process is the real one, with its lists, watches and reconciles; the API server is a double that keeps objects and
streams their changes. It shows where memory goes, and what a change saves. The figure itself is measured on a real
control plane, by `bench.grown`.

    python -m bench.memory [--present 1000] [--active 200] [--seconds 40] [--trace 0]

With `--trace N` the process records its allocations, which makes it slow and heavy, and prints the N places that hold
most.
"""

from __future__ import annotations

import argparse
import collections
import copy
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import psutil

from bench.grown import grown_statuses  # first: it finds the tests' helpers
from dapt_operator.cli import main as dapt
from dapt_operator.cluster.kubernetes.resources import KINDS
from support.api_double import ApiDouble, Odd, Request
from support.builders import adaptation, profile
from support.cluster_objects import pod
from support.grown import GROWN
from support.watched_double import WatchedDouble
from testcluster.waiting import eventually

MEMORY_BAR_MIB = 250.0
NAMESPACE = "grown"


class Cluster(WatchedDouble):
    """Every Job gets a running pod at once."""

    def __init__(self) -> None:
        super().__init__()
        self.interfere = self._interfere

    def _interfere(self, request: Request) -> Odd | None:
        if request.method != "POST" or not request.path.endswith("/jobs"):
            return self.discovery_or_watch(request)
        answer = self._act(request)
        if answer.status == 201:
            started = pod({**json.loads(answer.body), "kind": "Job"})
            self.add(KINDS["Pod"].path(NAMESPACE, started["metadata"]["name"]), started)
        return answer


def fill(double: ApiDouble, present: int, num_active: int) -> None:
    """Store the profile and all adaptations."""
    active, ended = grown_statuses()
    given = profile()
    double.add(KINDS["AdaptationProfile"].path(None, given["metadata"]["name"]), given)
    for number in range(present):
        made = adaptation(f"a{number:04d}", **GROWN)
        made["metadata"] |= {"namespace": NAMESPACE, "generation": 1}
        status = copy.deepcopy(active if number < num_active else ended)
        made["status"] = {**status, "digests": {**status["digests"], "owner": f"{NAMESPACE}/dapt"}}
        double.add(KINDS["DomainAdaptation"].path(NAMESPACE, made["metadata"]["name"]), made)


def mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and its highest so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(values["VmRSS"]) / 1024, int(values["VmHWM"]) / 1024


def measure(options: argparse.Namespace) -> float:
    """Start the operator, print what it weighs at each step, and return what it weighs at the end."""
    with tempfile.TemporaryDirectory() as folder, Cluster() as double:
        fill(double, options.present, options.active)
        config, log = Path(folder) / "kubeconfig", options.log or Path(folder) / "log"
        config.write_text(json.dumps(kubeconfig(double.url)))
        command = [sys.executable, "-m", "bench.memory", "--operator", "--trace", str(options.trace)]
        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                env=os.environ | {"KUBECONFIG": str(config)},
                stderr=file,
                cwd=Path(__file__).parents[1],
            )
        try:
            eventually(lambda: '"acting"' in log.read_text(), "the line 'acting'", seconds=300)
            show("acting", process.pid)
            jobs = lambda: len(double.sent(r"^POST .*/jobs$"))  # noqa: E731
            eventually(lambda: jobs() >= options.active, "a Job of each active one", seconds=300)
            show("all run", process.pid)
            for _ in range(4):
                time.sleep(options.seconds / 4)
                show("quiet", process.pid)
            cpu = psutil.Process(process.pid).cpu_times()
            print(f"CPU {cpu.user + cpu.system:.1f} s, {len(double.requests)} requests", file=sys.stderr)
            watches = collections.Counter(item.path for item in double.sent() if item.query.get("watch"))
            print(f"watches: {dict(watches)}", file=sys.stderr)
            weight = mib(process.pid)[0]
            process.send_signal(signal.SIGUSR1)
            time.sleep(20 if options.trace else 3)
            return weight
        finally:
            process.kill()
            process.wait()
            if options.trace:
                print(*log.read_text().splitlines()[-options.lines :], sep="\n", file=sys.stderr)


BEGUN = time.monotonic()


def show(what: str, pid: int) -> None:
    """One line about the process."""
    now, highest = mib(pid)
    print(
        f"{time.monotonic() - BEGUN:.0f} s, {what}: {now:.0f} MiB, at most {highest:.0f}",
        file=sys.stderr,
        flush=True,
    )


def kubeconfig(url: str) -> dict[str, Any]:
    """Reach the double, as nobody."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": url}}],
        "users": [{"name": "a", "user": {}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }


def operate(trace: int) -> None:
    """Be the operator; on SIGUSR1 print what holds memory."""
    if trace:
        tracemalloc.start(8)

    def report(*_: object) -> None:
        sys._debugmallocstats()
        if not trace:
            return
        gc.collect()
        snapshot = tracemalloc.take_snapshot()
        for statistic in snapshot.statistics("lineno")[:trace]:
            print(statistic, file=sys.stderr)
        for statistic in snapshot.statistics("traceback")[:trace]:
            print(statistic, *statistic.traceback.format(), sep="\n", file=sys.stderr)

    signal.signal(signal.SIGUSR1, report)
    where = [f"--namespace={NAMESPACE}", f"--instance={NAMESPACE}/dapt", f"--lease-namespace={NAMESPACE}"]
    dapt(["operator", *where, "--port=0", "--log-level=info"])


def main() -> int:
    """Measure and print; 0 when the bar is reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory")
    parser.add_argument("--present", type=int, default=1000)
    parser.add_argument("--active", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--trace", type=int, default=0)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--operator", action="store_true")
    options = parser.parse_args()
    if options.operator:
        operate(options.trace)
        return 0
    weight = measure(options)
    verdict = "ok" if weight <= MEMORY_BAR_MIB else "short"
    print(f"operator.memory_on_a_double_mib {weight:.1f} {MEMORY_BAR_MIB:g} {verdict}", flush=True)
    return int(weight > MEMORY_BAR_MIB)


if __name__ == "__main__":
    sys.exit(main())
