"""Tests the ranks of one or several pods under torch's launcher: rendezvous, root causes, peers, stops, hangs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stages.publish import PublishFacts
from support.pod_objects import alive, listening, run_pod, start_pod, stop, wait_until
from support.ports import free_port

pytestmark = [pytest.mark.torch, pytest.mark.distributed]


def test_pods_that_start_at_different_moments_join_and_reduce(tmp_path: Path) -> None:
    port = free_port()
    second = start_pod(tmp_path, "all-reduce", nodes=2, node=1, coordinator=port)
    with pytest.raises(Exception, match="timed out"):
        second.process.wait(timeout=2)  # it waits for the first pod
    first = start_pod(tmp_path, "all-reduce", nodes=2, node=0, coordinator=port)
    assert (first.wait(), second.wait()) == (0, 0)
    assert (first.work / "sum-0").read_text() == "3.0"
    assert (first.work / "sum-1").read_text() == "3.0"
    assert isinstance(first.message.parsed_facts(), PublishFacts)
    assert second.message.facts is None


def test_the_root_cause_is_found_among_the_ranks(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "all-reduce,step=1,all-reduce=again|all-reduce,input-error", processes=2)
    assert code == 64
    assert (pod.message.cause, pod.message.message) == (
        Cause.BAD_INPUT,
        "corpus.jsonl:3: not JSON; corpus.jsonl:9: no field 'text'",
    )


def test_a_crash_is_not_hidden_by_its_peers_broken_collective(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "all-reduce,all-reduce=again|all-reduce,crash", processes=2)
    assert (code, pod.message.cause) == (1, Cause.CRASH)
    assert "rank 1 failed at fake_stage.py:" in pod.message.message


def test_peers_of_a_failed_rank_are_killed_at_once(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "all-reduce,ignore-stop=100|all-reduce,diverged", processes=2)
    assert (code, pod.message.cause, pod.message.message) == (77, Cause.DIVERGED, "loss is nan at step 4")


def test_a_killed_rank_ends_its_pod(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "all-reduce,touch=started,ignore-stop=100", processes=2)
    wait_until((pod.work / "started").exists, "the ranks")
    first, second = pod.rank_pids()
    os.kill(second, signal.SIGKILL)
    assert pod.wait() == 75
    assert (pod.message.cause, pod.message.message) == (
        Cause.INFRASTRUCTURE,
        "rank 1 was killed by SIGKILL from outside",
    )
    assert not alive(first)


def test_a_stop_reaches_all_ranks_and_all_save(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "all-reduce,touch=started-0,polled-sleep=100|all-reduce,touch=started-1,polled-sleep=100",
                    processes=2)  # fmt: skip
    wait_until(lambda: all((pod.work / f"started-{rank}").exists() for rank in (0, 1)), "the ranks")
    # Neither torch's store nor gloo asks who connects.
    assert {address for _, address in listening(pod.process.pid)} == {"127.0.0.1"}
    assert stop(pod) == 143
    assert pod.message.cause is Cause.STOPPED
    folder = pod.work / "stages/publish-a1/try-1"
    assert sorted(path.name for path in folder.glob("saved-*")) == ["saved-0", "saved-1"]


def test_a_pod_that_waits_for_its_peers_stops_when_asked(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "all-reduce", nodes=2, node=1, coordinator=free_port())
    wait_until(lambda: (pod.folder / "scratch/ranks-1/launcher").exists(), "the launcher")
    assert stop(pod) == 143
    assert pod.message.message == "stop requested before the ranks ran"


def test_a_pod_whose_peers_never_come_gives_up(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "all-reduce", nodes=2, node=1, coordinator=free_port(),
                        DAPT_STARTUP_TIMEOUT_SECONDS="3")  # fmt: skip
    assert (code, pod.message.cause) == (75, Cause.INFRASTRUCTURE)
    assert pod.message.message.startswith("the ranks could not be started: DistNetworkError")


def test_a_hung_rank_is_distinguished_from_its_waiting_peer(tmp_path: Path) -> None:
    script = "all-reduce,step=1,step=2,all-reduce=again|all-reduce,step=1,step=2,sleep=100"
    code, pod = run_pod(tmp_path, script, processes=2, DAPT_HANG_FLOOR_SECONDS="2")
    assert (code, pod.message.cause) == (75, Cause.HANG)
    first, _, second = pod.log.partition("stacks of rank 1:")
    assert "stacks of rank 0:" in first
    assert "in _do" in first
    assert "in _do" in second


def test_a_killed_agent_takes_all_its_ranks_along(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "all-reduce,touch=started,ignore-stop=100", processes=2)
    wait_until((pod.work / "started").exists, "the ranks")
    ranks = pod.rank_pids()
    pod.signal(signal.SIGKILL)
    pod.wait()
    wait_until(lambda: not any(alive(rank) for rank in ranks), "the ranks' end")
