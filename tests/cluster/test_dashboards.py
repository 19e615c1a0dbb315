"""Asks a real Prometheus every query of the dashboards, on the series of adaptations that a planner has worked on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.preflight import PreflightReading
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.cluster.kubernetes.resync import FailedList
from dapt_operator.runtime.metrics import ReconcileMetrics, exposition, summarize
from dapt_operator.runtime.operator_metrics import OperatorCollector, ProcessCollector, ProcessState
from dapt_operator.stage_run import Manifest
from dapt_operator.testing.objects import Ends, Stays
from dapt_trainer.pod.progress import METRICS
from support.builders import facts_for
from support.worlds import World, failing, once
from testcluster import prometheus
from testcluster.control_plane import ROOT
from testcluster.processes import free_port
from testcluster.prometheus import Prometheus

pytestmark = pytest.mark.cluster
FOLDER = ROOT / "charts" / "dapt" / "files" / "dashboards"
QUERIES = [
    pytest.param(board.stem, target["expr"], id=f"{board.stem}: {panel['title']} {target['refId']}")
    for board in sorted(FOLDER.glob("*.json"))
    for panel in json.loads(board.read_text())["panels"]
    for target in panel.get("targets", ())
]
VALUES = {"$namespace": "health", "$name": "training", "$__rate_interval": "15s"}
PRICE = {"accelerator": {"pricePerHour": 2.0}}
PREFLIGHT = PreflightReading(
    seconds=2.0,
    all_reduce_bytes_per_second=9_000_000_000,
    point_to_point_bytes_per_second=8_000_000_000,
    shared_memory_bytes=2**30,
    write_bytes_per_second=500_000_000,
    read_bytes_per_second=900_000_000,
    clock_difference_seconds=0.01,
)


def stored(world: World, name: str) -> Manifest:
    resource = world.cluster.observe(world.key).resource
    assert resource is not None
    metadata = dict(resource["metadata"]) | {"name": name, "uid": name}
    return {**resource, "metadata": metadata}


LOST = failing("pretrain", once(Ends(75, message="a rank is gone", cause=Cause.INFRASTRUCTURE)))


def with_step_times(stage: StageFile) -> Ends | Stays:
    facts = facts_for(stage)
    if isinstance(facts, PretrainFacts):
        facts = facts.model_copy(update={"step_seconds_median": 0.01})
    return Ends(facts=facts)


def training() -> Manifest:
    """An adaptation whose pretraining runs again after a fault, and that has what a first attempt has measured."""
    world = World(offered=PRICE)
    world.live(LOST, lambda world: world.running == "pretrain" and world.tries[-1] == "pretrain/2")

    def reading(stage: StageFile) -> Ends | Stays:
        return Stays(
            progress=Progress(
                run_key=stage.run.key,
                stage="pretrain",
                fraction=0.5,
                step=20,
                tokens=20_480,
                eta_seconds=60.0,
                preflight=PREFLIGHT,
            )
        )

    world.cluster.run_pods(world.key, reading)
    world.settle()
    resource = stored(world, "training")
    ended = World(offered=PRICE)
    ended.live(with_step_times)
    status = stored(ended, "ended")["status"]
    measured = {
        name: status[name]
        for name in ("candidates", "selected", "gates", "taskDropPoints", "attempts", "usage")
    }
    return {**resource, "status": {**resource["status"], **measured}}


def waiting() -> Manifest:
    world = World(offered=PRICE)
    world.live_until("baseline")
    world.reconcile()
    return stored(world, "waiting")


def page() -> bytes:
    """What the operator exports of them, and rank 0 of the training."""
    foreign = {
        "kind": "DomainAdaptation",
        "metadata": {"name": "theirs", "namespace": "a", "uid": "7"},
        "status": {"digests": {"owner": "b/dapt"}},
    }
    resources = [training(), waiting(), foreign]
    summaries = [summarize(resource) for resource in resources]
    registry = CollectorRegistry()
    failed = FailedList("Pod", "finance", "403 Forbidden", is_unreachable=False)
    registry.register(OperatorCollector(lambda: summaries, "team/dapt", lambda: [failed]))
    registry.register(ProcessCollector(ProcessState(lambda: True, lambda: 3, lambda: 1.7e9)))
    ReconcileMetrics(registry).duration.observe(0.02)
    of = 'namespace="health",name="training"'
    rank = "".join(f"dapt_trainer_{name}{{{of}}} 1.0\n" for name in METRICS)
    return generate_latest(registry) + exposition(summaries) + rank.encode()


@pytest.fixture(scope="module")
def reader() -> Iterator[Prometheus]:
    if prometheus.find() is None:
        pytest.skip(prometheus.HOW_TO_GET_IT)
    content = page()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", free_port()), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = prometheus.fixed("operator", f"127.0.0.1:{server.server_address[1]}", honor_labels=True)
        try:
            with Prometheus([target]) as found:
                found.wait_for_scrapes("operator", more=3)
                yield found
        finally:
            server.shutdown()


@pytest.mark.parametrize(("board", "expression"), QUERIES)
def test_each_query_of_a_panel_is_answered(reader: Prometheus, board: str, expression: str) -> None:
    for variable, value in VALUES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    assert reader.query(expression), f"{board} shows nothing for {expression}"
