"""Local runs killed at random moments, their own books included."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.cluster.local import LocalCluster
from dapt_operator.stage_run import RunPhase
from support.launch_builders import resource
from support.local_runs import last_state, ranks_below, start
from support.pod_objects import alive, wait_until

KILLS = 5
SCRIPT = "step=1,polled-sleep=0.4,step=2"


def follow(folder: Path) -> None:
    """What a reconcile does, at its simplest: a new try after every failure, until one succeeds."""
    with LocalCluster(folder, resource(), None) as local:
        while True:
            jobs = local.observe(local.key).children.jobs
            state = last_state(local) if jobs else None
            if state is not None and state.phase is RunPhase.SUCCEEDED:
                return
            if state is None or state.phase is RunPhase.FAILED:
                # Killed between the Job and its process, a run has not begun: a stop, which is no fault either.
                assert state is None or state.cause in (Cause.DISRUPTION, Cause.STOPPED), state
                start(local, SCRIPT, try_number=len(jobs) + 1)
            local.wait_for_change(1.0)


RUN = "import sys; sys.path[:0] = {path!r}; from pathlib import Path; from test_local_faults import follow; follow(Path({folder!r}))"  # noqa: E501


@pytest.mark.faults
@pytest.mark.parametrize("seed", [11, 12])
def test_a_local_run_killed_at_random_moments_ends_as_an_unbroken_one(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    for _ in range(KILLS):
        run = subprocess.Popen([sys.executable, "-c", RUN.format(path=path, folder=str(tmp_path))])
        time.sleep(rng.uniform(0.3, 1.8))
        pids = ranks_below(tmp_path)
        run.kill()
        run.wait()
        wait_until(lambda pids=pids: not any(alive(pid) for pid in pids), "the processes' end")  # type: ignore[misc]
    follow(tmp_path)
    assert ranks_below(tmp_path) == []
    with LocalCluster(tmp_path, resource(), None) as local:
        assert last_state(local).phase is RunPhase.SUCCEEDED
        assert len(local.observe(local.key).children.jobs) <= KILLS + 1
