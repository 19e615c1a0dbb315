"""Tests the message when the file that a run was started with is changed or removed."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from dapt_operator.launchers import indexed_job
from dapt_operator.stage_run import RunPhase
from support.gang_objects import RUN, ended, job, job_set, pod, state_of
from support.launch_builders import owner, profile

STAGE_JSON = indexed_job.render(RUN, profile(), owner())[0]["data"]["stage.json"]
SHA256 = hashlib.sha256(STAGE_JSON.encode()).hexdigest()


@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
def test_a_changed_file_is_named_with_the_remedy(make: Any) -> None:
    state = state_of(pod(0, "Pending"), of=make(), stage_digests={RUN.name: "f" * 64})
    assert state.tampering == (
        f"ConfigMap {RUN.name} was changed after it was written (its stage.json has SHA-256 ffffffffffff, the run was"
        f" started with {SHA256[:12]}): delete the ConfigMap, then the stage starts again"
    )
    assert not state.is_stage_file_lost


def test_the_file_that_was_written_is_no_news() -> None:
    for digests in ({}, {RUN.name: SHA256}, {"another": None}):
        state = state_of(pod(0, "Running"), stage_digests=digests)
        assert (state.tampering, state.is_stage_file_lost) == ("", False)


def test_a_file_that_is_gone_matters_while_a_pod_has_to_read_it() -> None:
    gone = {RUN.name: None}
    running = {"running": {"startedAt": "2026-01-31T12:00:05Z"}}
    assert state_of(stage_digests=gone).is_stage_file_lost
    assert state_of(
        pod(0, "Running", state=running), pod(1, "Pending"), stage_digests=gone
    ).is_stage_file_lost
    both = state_of(pod(0, "Running", state=running), pod(1, "Running", state=running), stage_digests=gone)
    assert (both.phase, both.is_stage_file_lost, both.tampering) == (RunPhase.RUNNING, False, "")


def test_a_run_that_is_over_is_past_tampering() -> None:
    assert state_of(ended(0, 1), ended(1, 1), stage_digests={RUN.name: "f" * 64}).tampering == ""
