"""A status of a realistic size stays small while it grows, and smaller once nothing is decided from it any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_operator.cli.commands.rejudge import rejudge_run
from dapt_operator.cli.errors import UserError
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.reconcile import reconcile
from dapt_operator.runtime.metrics import SERIES, read
from dapt_operator.testing.cluster import MemoryCluster
from support.builders import adaptation, profile
from support.grown import CHECKPOINTS, GROWN, TASKS, grown_script


def lived(*, local: bool = False, **over: Any) -> tuple[dict[str, Any], list[int]]:
    """The resource at its end, and the bytes of each status that was written."""
    cluster, script, sizes = MemoryCluster(), grown_script(), []
    cluster.add_profile(profile())
    key = cluster.add(adaptation(**(GROWN | over)))
    for _ in range(500):
        plan = reconcile(cluster, key, LAUNCHERS, local=local)
        if plan.status is not None:
            sizes.append(len(json.dumps(plan.status.to_dict(), separators=(",", ":"))))
        if plan.is_empty and plan.requeue_after is None:
            break
        cluster.run_pods(key, script)
        cluster.advance(plan.requeue_after or 1.0)
    found: dict[str, Any] = cluster.stored(key).resource
    assert found["status"]["phase"] == "Published"
    return found, sizes


@pytest.fixture(scope="module")
def finished() -> tuple[dict[str, Any], list[int]]:
    return lived()


def test_a_growing_status_stays_under_96_kib(finished: tuple[dict[str, Any], list[int]]) -> None:
    _, sizes = finished
    assert max(sizes) <= 96 * 1024


def test_a_finished_status_keeps_its_tables_in_32_kib(finished: tuple[dict[str, Any], list[int]]) -> None:
    resource, sizes = finished
    status = resource["status"]
    assert sizes[-1] <= 32 * 1024
    assert len(status["candidates"]) == CHECKPOINTS
    assert all(row["gainWithTasks"] and row["generalPerplexity"] for row in status["candidates"])
    (chosen,) = [row for row in status["candidates"] if row["id"] == status["selected"]["id"]]
    assert sorted(chosen["tasks"]) == sorted([*TASKS["domain"], *TASKS["general"]])
    assert len([row for row in status["candidates"] if row.get("tasks")]) == 2
    assert {stage["name"] for stage in status["stages"]} >= {"baseline", "evaluate", "verify", "publish"}


def test_the_cost_of_a_finished_adaptation_is_what_its_runs_cost(
    finished: tuple[dict[str, Any], list[int]],
) -> None:
    ledger = finished[0]["status"]["ledger"]
    seconds = sum(ledger["closed"]["acceleratorSeconds"].values())
    seconds += sum(record["acceleratorSeconds"] for record in ledger["runs"])
    assert finished[0]["status"]["usage"]["gpuHours"] == pytest.approx(seconds / 3600, abs=1e-4)


def test_metrics_of_a_finished_adaptation_still_have_its_gates(
    finished: tuple[dict[str, Any], list[int]],
) -> None:
    values = dict(zip((series.name for series in SERIES), read(finished[0]), strict=True))
    assert len(values["dapt_gate_passed"]) >= 2
    assert {task for task, _ in values["dapt_task_drop_points"]} == set(TASKS["general"])
    timed = {stage for stage, _ in values["dapt_stage_duration_seconds"]}
    assert timed >= {"destination", "prepare", "baseline", "pretrain", "evaluate", "finetune", "verify"}


def test_rejudging_a_finished_adaptation_says_that_its_numbers_are_gone(
    finished: tuple[dict[str, Any], list[int]], tmp_path: Path
) -> None:
    file = tmp_path / "finished.yaml"
    file.write_text(json.dumps(finished[0]))
    with pytest.raises(UserError, match="has finished, and its status keeps the tables alone"):
        rejudge_run(str(file), file, tmp_path)


def test_a_local_status_keeps_everything() -> None:
    resource, _ = lived(local=True, pretraining={"budget": {"steps": 2000}, "checkpoints": {"count": 4}})
    ledger = resource["status"]["ledger"]
    assert len([record for record in ledger["runs"] if record["kind"] == "evaluate"]) == 4
    assert len(ledger["measures"]) == 4
