"""A stop by the user is a stop, however and whenever the processes end: never a fault, never a retry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dapt_contract.pod.failure import Cause
from dapt_operator.cluster.local import LocalCluster
from dapt_operator.cluster.local.processes.job_status import STOPPED_UNSAVED
from dapt_operator.stage_run import RunPhase
from support.launch_builders import resource
from support.local_programs import SAVES, SLEEP, STUBBORN, start, state_of
from support.pod_objects import wait_until


def test_what_outlasts_its_grace_period_at_the_end_of_a_local_run_was_stopped(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        start(local, STUBBORN, grace=1)
        wait_until((tmp_path / "work/ready-0").exists, "the process")
    with LocalCluster(tmp_path, resource(), None) as again:
        assert (state_of(again).cause, state_of(again).message) == (Cause.STOPPED, STOPPED_UNSAVED)


def test_a_stage_that_is_stopped_while_it_starts_was_stopped(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        start(local, SLEEP)  # SIGTERM reaches the interpreter before any handler is there
    with LocalCluster(tmp_path, resource(), None) as again:
        assert (state_of(again).cause, state_of(again).message) == (Cause.STOPPED, STOPPED_UNSAVED)


def test_nothing_starts_once_the_user_does_not_want_to_wait(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        local.kill()
        start(local, SLEEP)
        assert state_of(local).phase is RunPhase.PENDING
    with LocalCluster(tmp_path, resource(), None) as again:
        assert (state_of(again).cause, state_of(again).message) == (Cause.STOPPED, STOPPED_UNSAVED)


def test_a_failure_of_its_own_stays_one_while_the_local_run_is_stopped(tmp_path: Path) -> None:
    program = SAVES.replace("sys.exit(143)", "sys.exit(64)")
    with LocalCluster(tmp_path, resource(), None) as local:
        start(local, program)
        wait_until((tmp_path / "work/ready-0").exists, "the process")
    with LocalCluster(tmp_path, resource(), None) as again:
        assert state_of(again).cause is Cause.BAD_INPUT


STOPPING = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from dapt_operator.cluster.local import LocalCluster
from support.launch_builders import resource
from support.local_programs import STUBBORN, start
from support.pod_objects import wait_until
local = LocalCluster(Path({folder!r}), resource(), None)
start(local, STUBBORN)
wait_until((Path({folder!r}) / "work/ready-0").exists, "the process")
local.close()
"""


def test_a_local_run_that_is_killed_while_it_lets_a_stage_save_was_stopped(tmp_path: Path) -> None:
    code = STOPPING.format(path=[str(Path(__file__).parents[1])], folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code]) as victim:
        wait_until(lambda: "stopped-by-user" in stored_jobs(tmp_path), "the stop")
        victim.kill()
    with LocalCluster(tmp_path, resource(), None) as again:
        assert (state_of(again).cause, state_of(again).message) == (Cause.STOPPED, STOPPED_UNSAVED)


def stored_jobs(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("objects/job-*.json"))
