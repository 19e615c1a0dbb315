"""Tests the loop of `dapt run` over a cluster double: when it reads again, what it prints, when it ends."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import YamlDocument
from dapt_operator.cli.commands import run as module
from dapt_operator.cli.display.screen import PlainLog
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.inputs.machine import built_in_profile
from dapt_operator.cli.inputs.manifests import read_request
from dapt_operator.cli.signals import StopFlag
from dapt_operator.cluster.port import Key, World
from dapt_operator.plan.decide import Plan
from dapt_operator.stage_run import Children, RunPhase, RunState

MANIFEST = """\
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: tiny}
spec:
  model: {source: "file://base"}
  corpus: {domain: [{source: "file://a.jsonl"}], general: [{source: "file://b.jsonl"}]}
  output: {destination: "file://out"}
  resources: {nodes: 2, gpusPerNode: 3}
"""


class Clock:
    """Time that passes only while something waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Cluster:
    """Plays statuses one after the other; a wait lasts as long as it may, or ends with a change."""

    key = Key("default", "tiny")
    folder = Path("nowhere")

    def __init__(
        self, clock: Clock, statuses: list[dict[str, Any]], change_after: float | None = None
    ) -> None:
        self.clock, self.statuses, self.change_after = clock, statuses, change_after
        self.reconciled: list[float] = []
        self.waits: list[float] = []
        self.failed: tuple[RunState, ...] = ()

    def log_path(self, job: str) -> Path:
        return self.folder / f"{job}-0.log"

    def reconcile(self, *_: object) -> Plan:
        self.reconciled.append(self.clock.now)
        if len(self.reconciled) > 1 and len(self.statuses) > 1:
            self.statuses.pop(0)
        return Plan(requeue_after=4.0)

    def observe(self, key: Key) -> World:
        resource: Mapping[str, Any] = {"status": self.statuses[0]}
        return World(datetime(2026, 1, 31, tzinfo=UTC), resource, None, Children())

    def wait_for_change(self, timeout_seconds: float) -> bool:
        changed = self.change_after is not None and timeout_seconds >= self.change_after
        self.waits.append(timeout_seconds)
        self.clock.now += self.change_after if changed and self.change_after else timeout_seconds
        return changed


class Screen:
    refresh_seconds = 1.0

    def __init__(self) -> None:
        self.log = PlainLog()
        self.lines: list[str] = []

    def show(self, snapshot: Snapshot) -> None:
        self.lines += self.log.lines(snapshot)

    def add_line(self, line: str) -> None:
        self.lines.append(line)


RUNNING = {"phase": "Preparing", "stages": [{"name": "prepare", "kind": "prepare", "state": "Running"}]}
ENDED = {
    "phase": "Published",
    "conditions": [
        {
            "type": "Finished",
            "status": "True",
            "reason": "Published",
            "message": "model published",
            "lastTransitionTime": "2026-01-31T12:00:00Z",
        }
    ],
}


def failure(try_number: int) -> RunState:
    identity = RunIdentity(
        namespace="default",
        name="tiny",
        uid="u",
        stage="prepare",
        attempt=1,
        try_number=try_number,
        fence=try_number,
    )
    return RunState(
        identity,
        "prepare",
        "digest",
        "tiny-prepare",
        RunPhase.FAILED,
        Cause.INFRASTRUCTURE,
        75,
        "lost a peer",
    )


def follow(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, flag: StopFlag | None = None
) -> tuple[Any, Screen]:
    screen = Screen()
    launcher = SimpleNamespace(states=lambda _, __: cluster.failed)
    monkeypatch.setattr(module, "reconcile", cluster.reconcile)
    monkeypatch.setattr(module, "LAUNCHERS", {"one": launcher})
    status = module.follow(
        cluster,  # type: ignore[arg-type]
        ("prepare",),
        screen,  # type: ignore[arg-type]
        flag or StopFlag(),
        cluster.clock,
    )
    return status, screen


def test_it_reconciles_when_the_plan_wants_it_and_shows_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(Clock(), [RUNNING, RUNNING, ENDED])
    status, screen = follow(monkeypatch, cluster)
    assert status.phase == "Published"
    assert cluster.reconciled == [0.0, 4.0, 8.0]
    assert set(cluster.waits) == {0.125}, "a signal is seen soon"
    assert screen.lines == ["[00:00:00] prepare: starting"]


def test_a_change_is_acted_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(Clock(), [RUNNING, ENDED], change_after=0.125)
    follow(monkeypatch, cluster)
    assert cluster.reconciled == [0.0, 0.125]


def test_follow_prints_each_new_failure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(Clock(), [RUNNING, RUNNING, ENDED])
    cluster.failed = (failure(1),)
    before = cluster.wait_for_change

    def fails_again(timeout_seconds: float) -> bool:
        cluster.failed = (failure(1), failure(2))
        return before(timeout_seconds)

    monkeypatch.setattr(cluster, "wait_for_change", fails_again)
    _, screen = follow(monkeypatch, cluster)
    assert screen.lines == [
        "[00:00:00] prepare: starting",
        "[00:00:01] prepare, run 2: failed (Infrastructure): lost a peer",
    ]


def test_failure_has_every_problem_where_its_message_had_no_place(tmp_path: Path) -> None:
    log, run = (
        tmp_path / "tiny-prepare-0.log",
        replace(failure(1), message="a.jsonl: damaged; b.jsonl: not..."),
    )
    line = "prepare, run 1: failed (Infrastructure): a.jsonl: damaged; b.jsonl: not"
    assert module.failure_line(run, log) == f"{line}..."
    log.write_text("loading\ndapt: a.jsonl: damaged; b.jsonl: not JSON; c.jsonl: empty\n")
    assert module.failure_line(run, log) == f"{line} JSON; c.jsonl: empty"


def test_follow_prints_each_warning_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = RUNNING | {"plan": {"warnings": ["little text", "no finetuning"]}}
    cluster = Cluster(Clock(), [RUNNING, planned, planned, ENDED])
    _, screen = follow(monkeypatch, cluster)
    assert screen.lines == [
        "[00:00:00] prepare: starting",
        "warning: little text",
        "warning: no finetuning",
        "[00:00:10] prepare: starting",  # nothing was new for ten seconds
    ]


def test_a_signal_ends_the_loop_with_the_run_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, flag = Cluster(Clock(), [RUNNING]), StopFlag()
    flag.received.append(signal.SIGTERM)
    status, _ = follow(monkeypatch, cluster, flag)
    assert status.phase == "Preparing"
    assert cluster.reconciled == [], "nothing is started any more"
    assert cluster.waits == []


@pytest.mark.parametrize("profile", [None, "local"])
def test_what_is_stored_is_valid_also_with_the_built_in_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)
    request = read_request(path, profile)
    stored = module.as_stored(request.adaptation, built_in_profile(request.adaptation))
    for manifest in stored:
        model, problems = check(YamlDocument(manifest), local=True)
        assert problems == []
        assert model is not None
    assert stored[0]["spec"]["profile"] == stored[1]["metadata"]["name"] == "local"
    assert stored[1]["spec"]["accelerator"]["perNode"] == 3
