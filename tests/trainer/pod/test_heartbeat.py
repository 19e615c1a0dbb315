"""Tests heartbeats and the root cause among outcomes, without any process."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.destination import DestinationConfig
from dapt_trainer import context
from dapt_trainer.pod.heartbeat import Heart, Heartbeat, read_heartbeat
from dapt_trainer.pod.outcome import RankOutcome, judge, killed_outcome


@pytest.mark.parametrize(
    ("stepped", "median", "limit"),
    [(False, 0.0, 900.0), (True, 0.0, 60.0), (True, 2.0, 60.0), (True, 30.0, 300.0)],
)
def test_the_hang_limit_is_ten_median_steps_and_at_least_a_minute(
    stepped: bool, median: float, limit: float
) -> None:
    beat = Heartbeat(rank=0, pid=1, at=0.0, stepped=stepped, median_step_seconds=median)
    assert beat.hang_limit_seconds(startup_timeout_seconds=900, floor_seconds=60) == limit


def test_a_heartbeat_has_the_process_and_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 101.0, 103.0, 109.0])
    monkeypatch.setattr("time.monotonic", lambda: next(moments))
    heart = Heart(tmp_path, 3)
    assert read_heartbeat(tmp_path, 3) == Heartbeat(3, os.getpid(), 100.0, False, 0.0)
    heart.beat(step=1)
    heart.beat(step=2)
    heart.beat(step=4)
    assert read_heartbeat(tmp_path, 3) == Heartbeat(
        3, os.getpid(), 109.0, True, 2.5
    )  # 2 s, then 6 s for two steps


def test_beats_in_quick_succession_cost_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 100.1, 100.19, 100.21])
    monkeypatch.setattr("time.monotonic", lambda: next(moments))
    heart = Heart(tmp_path, 0)
    for expected in (100.0, 100.0, 100.21):
        heart.beat()
        found = read_heartbeat(tmp_path, 0)
        assert found is not None
        assert found.at == expected


def test_two_threads_may_beat(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 0)
    failures: list[BaseException] = []

    def beat(offset: int) -> None:
        try:
            for step in range(200):
                heart.beat(step=1000 * offset + step)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=beat, args=(offset,)) for offset in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_file_that_is_no_heartbeat_is_none(tmp_path: Path) -> None:
    (tmp_path / "heartbeat-0.json").write_text('{"pid": "x"}')
    assert read_heartbeat(tmp_path, 0) is None
    assert read_heartbeat(tmp_path, 1) is None


def failed(rank: int, cause: Cause, code: ExitCode, *, is_effect: bool = False) -> RankOutcome:
    return RankOutcome(
        rank=rank, exit_code=code, cause=cause, problems=(f"{cause} of {rank}",), is_effect=is_effect
    )


INPUT = failed(3, Cause.BAD_INPUT, ExitCode.BAD_INPUT)
LOST = failed(0, Cause.INFRASTRUCTURE, ExitCode.INFRASTRUCTURE, is_effect=True)
CRASH = failed(2, Cause.CRASH, ExitCode.UNKNOWN)
STOPPED = failed(1, Cause.STOPPED, ExitCode.STOPPED)


@pytest.mark.parametrize(
    ("outcomes", "root"),
    [
        ((LOST, CRASH, INPUT), INPUT),
        ((LOST, CRASH), CRASH),
        ((LOST, RankOutcome(rank=1)), LOST),
        ((STOPPED, RankOutcome(rank=0)), STOPPED),
        ((CRASH, failed(1, Cause.CRASH, ExitCode.UNKNOWN)), failed(1, Cause.CRASH, ExitCode.UNKNOWN)),
    ],
)
def test_the_root_cause_counts(outcomes: tuple[RankOutcome, ...], root: RankOutcome) -> None:
    outcome = judge(outcomes)
    assert (outcome.exit_code, outcome.cause, outcome.message) == (
        root.exit_code,
        root.cause,
        root.problems[0],
    )


def test_all_ranks_done_is_a_success_with_the_facts_of_rank_0() -> None:
    outcome = judge((RankOutcome(rank=1), RankOutcome(rank=0, facts={"files": 1})))
    assert (outcome.exit_code, outcome.cause, outcome.facts) == (0, None, {"files": 1})


@pytest.mark.parametrize(
    ("status", "oom_killed", "cause", "code"),
    [
        (-9, False, Cause.INFRASTRUCTURE, 75),
        (-9, True, Cause.OUT_OF_MEMORY, 70),
        (-11, False, Cause.CRASH, 1),
        (70, False, Cause.OUT_OF_MEMORY, 70),
        (None, False, Cause.INFRASTRUCTURE, 75),
    ],
)
def test_a_rank_without_an_outcome_is_judged_by_its_exit_status(
    status: int | None, oom_killed: bool, cause: Cause, code: int
) -> None:
    outcome = killed_outcome(0, status, oom_killed=oom_killed)
    assert (outcome.cause, outcome.exit_code) == (cause, code)


def test_long_call_may_last_half_an_hour_and_twice_the_time_of_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def keep_alive(progress: object, *, longest_seconds: float) -> contextlib.AbstractContextManager[None]:
        limits.append(longest_seconds)
        return contextlib.nullcontext()

    monkeypatch.setattr(context, "keep_alive", keep_alive)
    config = DestinationConfig(destination="file:///out", run_digest="sha256:0")
    run = RunIdentity(
        namespace="default", name="toy", uid="u", stage="destination", attempt=1, try_number=1, fence=1
    )
    stage = context.StageContext(
        stage=StageFile(run=run, kind="destination", config=config),
        work=tmp_path,
        scratch=tmp_path,
        progress=context.SilentProgress(),
        volume_bytes_per_second=100e6,
    )
    for num_bytes in (0, 140_000_000_000):
        with stage.keep_alive(num_bytes):
            pass
    assert limits == [1800.0, 4600.0]
