"""Rendered manifests with the real agent in them: what a local run does to whole gangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.cluster.local import LocalCluster
from dapt_operator.stage_run import RunPhase
from support.launch_builders import fake_manifests, resource, stage_run
from support.local_runs import last_state, owner_of, pid_of, ranks_below, start, wait_for_end
from support.pod_objects import alive, wait_until

pytestmark = [pytest.mark.local]
gang = [pytest.mark.torch, pytest.mark.distributed]


def test_a_live_reading_is_observed_while_the_stage_runs(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        run = start(local, "step=4,wait-for=go")
        wait_until(lambda: run.name in local.observe(local.key).children.progress, "a reading")
        assert last_state(local).progress is not None
        (tmp_path / "work/go").touch()
        state = wait_for_end(local)
        assert (state.phase, state.progress) == (RunPhase.SUCCEEDED, None)


def test_an_altered_config_map_is_refused(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        of = owner_of(local)
        *_, config_map, job = fake_manifests(stage_run(of=of), of)
        config_map["data"]["stage.json"] += " "
        local.apply(local.key, config_map)
        local.apply(local.key, job)
        state = wait_for_end(local)
        assert state.cause is Cause.BAD_INPUT
        assert "was altered after the run was created" in state.message


def test_new_run_does_not_repeat_a_finished_stage(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        start(local, "done", is_signed=True)
        assert wait_for_end(local).phase is RunPhase.SUCCEEDED
        again = start(local, "done", try_number=2, is_signed=True)
        state = wait_for_end(local)
        assert (state.identity.try_number, state.phase) == (2, RunPhase.SUCCEEDED)
        assert "is already finished" in local.log_path(again.name).read_text()


VICTIM = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from support.local_runs import LocalCluster, start; from support.launch_builders import resource
start(LocalCluster(Path({folder!r}), resource(), None), {script!r}, nodes={nodes})
time.sleep(600)
"""


def killed_run(folder: Path, script: str, nodes: int) -> None:
    """A local run in a process of its own that is killed once its stage has started."""
    path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    code = VICTIM.format(path=path, folder=str(folder), script=script, nodes=nodes)
    victim = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: (folder / "work/started").exists(), "the stage")
    pids = ranks_below(folder)
    assert len(pids) >= 2 * nodes, "agents and ranks"
    victim.kill()
    victim.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), "the end of agents and ranks")


def test_killed_local_run_continues_without_using_a_retry(tmp_path: Path) -> None:
    killed_run(tmp_path, "touch=started,wait-for=go", 1)
    with LocalCluster(tmp_path, resource(), None) as local:
        assert last_state(local).cause is Cause.DISRUPTION
        (tmp_path / "work/go").touch()
        start(local, "touch=started,wait-for=go", try_number=2)
        assert wait_for_end(local).phase is RunPhase.SUCCEEDED


class TestGangs:
    pytestmark = gang

    def test_a_killed_local_run_leaves_no_rank_of_a_gang(self, tmp_path: Path) -> None:
        killed_run(tmp_path, "all-reduce,touch=started,ignore-stop=600", 2)

    def test_two_adaptations_of_two_nodes_each_run_at_once(self, tmp_path: Path) -> None:
        with (
            LocalCluster(tmp_path / "a", resource("a"), None) as first,
            LocalCluster(tmp_path / "b", resource("b"), None) as second,
        ):
            for local in (first, second):
                start(local, "all-reduce", nodes=2)
            for local in (first, second):
                assert wait_for_end(local).phase is RunPhase.SUCCEEDED
                assert (local.folder / "work/sum-0").read_text() == "3.0"

    def test_a_killed_agent_ends_its_gang_as_an_infrastructure_fault(self, tmp_path: Path) -> None:
        with LocalCluster(tmp_path, resource(), None) as local:
            run = start(local, "all-reduce,touch=started,polled-sleep=600", nodes=2)
            wait_until((tmp_path / "work/started").exists, "the stage")
            os.kill(pid_of(local, run, 1), signal.SIGKILL)
            state = wait_for_end(local)
            assert (state.cause, state.exit_code) == (Cause.INFRASTRUCTURE, 137)
            assert ranks_below(tmp_path) == []

    def test_closing_lets_a_gang_save(self, tmp_path: Path) -> None:
        script = "all-reduce,touch=started-0,polled-sleep=600|all-reduce,touch=started-1,polled-sleep=600"
        with LocalCluster(tmp_path, resource(), None) as local:
            start(local, script, nodes=2)
            wait_until(
                lambda: all((tmp_path / f"work/started-{rank}").exists() for rank in (0, 1)), "the ranks"
            )
        with LocalCluster(tmp_path, resource(), None) as local:
            state = last_state(local)
            assert (state.cause, state.message) == (Cause.STOPPED, "stop requested; saved at step 3")
