"""Tests how a pod with one rank ends: exit code, termination message, log."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest

from dapt_contract.pod.environment import SIGNING_KEY_FILE
from dapt_contract.pod.failure import Cause
from dapt_contract.pod.message import MAX_MESSAGE_BYTES
from dapt_contract.pod.progress import Progress
from dapt_contract.signature import SIGNING_KEY_BYTES
from dapt_contract.stages.publish import PublishFacts
from support.pod_objects import alive, run_pod, start_pod, stop, wait_until


def test_a_finished_stage_reports_its_facts_and_writes_its_report(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "done")
    assert code == 0
    assert pod.message.cause is None
    assert pod.message.parsed_facts() == PublishFacts(
        destination="file://done", digest="d" * 64, files=1, size_bytes=7
    )
    assert (pod.work / "stages/publish-a1/try-1/report.json").is_file()


def test_a_finished_stage_is_reported_again_without_running(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(SIGNING_KEY_BYTES))
    signed = {SIGNING_KEY_FILE: str(tmp_path / "key")}
    run_pod(tmp_path, "done", **signed)
    code, again = run_pod(tmp_path, "done", **signed)
    assert code == 0
    assert again.message.parsed_facts() is not None
    assert again.log == "dapt: publish-a1 is already finished; reporting its result again\n"


def test_report_on_the_volume_is_not_believed_where_the_stage_has_no_key(tmp_path: Path) -> None:
    run_pod(tmp_path, "done")
    path = tmp_path / "work/stages/publish-a1/try-1/report.json"
    path.write_text(path.read_text().replace("d" * 64, "e" * 64))
    code, again = run_pod(tmp_path, "done")
    assert code == 0
    assert again.message.parsed_facts().digest == "d" * 64  # type: ignore[union-attr]


def test_another_configuration_of_the_same_run_is_not_finished(tmp_path: Path) -> None:
    run_pod(tmp_path, "done")
    code, _ = run_pod(tmp_path, "input-error")
    assert code == 64


@pytest.mark.parametrize(
    ("script", "code", "cause", "message"),
    [
        ("input-error", 64, Cause.BAD_INPUT, "corpus.jsonl:3: not JSON; corpus.jsonl:9: no field 'text'"),
        ("diverged", 77, Cause.DIVERGED, "loss is nan at step 4"),
        ("out-of-memory", 70, Cause.OUT_OF_MEMORY, "a batch of 4 does not fit"),
        ("memory-error", 70, Cause.OUT_OF_MEMORY, "rank 0 ran out of memory: MemoryError: no room"),
        ("kill-self=SIGKILL", 75, Cause.INFRASTRUCTURE, "rank 0 was killed by SIGKILL from outside"),
        ("kill-self=SIGSEGV", 1, Cause.CRASH, "rank 0 crashed with SIGSEGV; its stacks are in the log"),
        ("exit=0", 1, Cause.CRASH, "rank 0 ended with exit code 0 and left no outcome"),
        ("exit=3", 1, Cause.CRASH, "rank 0 ended with exit code 3 and left no outcome"),
    ],
)
def test_each_end_has_its_exit_code_cause_and_message(
    tmp_path: Path, script: str, code: int, cause: Cause, message: str
) -> None:
    found, pod = run_pod(tmp_path, script)
    assert (found, pod.message.exit_code, pod.message.cause, pod.message.message) == (
        code,
        code,
        cause,
        message,
    )


def test_a_diverged_stage_still_reports_its_facts(tmp_path: Path) -> None:
    _, pod = run_pod(tmp_path, "diverged")
    assert pod.message.parsed_facts() == PublishFacts(destination="d", digest="x", files=1, size_bytes=1)


def test_a_failure_is_reported_although_sigterm_comes_at_the_same_moment(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "crash-during-sigterm")
    assert (code, pod.message.cause) == (1, Cause.CRASH)
    assert pod.message.message.startswith("rank 0 failed at fake_stage.py:")
    assert "SigtermWhileFormattingError: in the middle of it" in pod.message.message


def test_a_crash_is_one_sentence_with_its_place_and_the_traceback_is_in_the_log(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "crash")
    assert code == 1
    assert pod.message.message.startswith("rank 0 failed at fake_stage.py:")
    assert pod.message.message.endswith(": ZeroDivisionError: division by zero; the log has the traceback")
    assert "Traceback (most recent call last)" in pod.log


def test_a_users_mistake_has_no_traceback(tmp_path: Path) -> None:
    _, pod = run_pod(tmp_path, "input-error")
    assert pod.log == "dapt: corpus.jsonl:3: not JSON; corpus.jsonl:9: no field 'text'\n"


def test_a_full_disk_is_reported_with_its_path_and_free_space(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "disk-full")
    assert (code, pod.message.cause) == (75, Cause.INFRASTRUCTURE)
    assert pod.message.message.startswith(
        f"{pod.work}/stages/publish-a1/try-1/checkpoint-8.partial/w.bin: no space left to write it ("
    )
    assert f"MiB free in {pod.work}/stages/publish-a1/try-1)" in pod.message.message
    assert "Traceback" not in pod.log


def test_a_file_without_permission_is_reported_with_the_user(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "forbidden")
    assert (code, pod.message.cause) == (64, Cause.BAD_INPUT)
    assert pod.message.message == (
        f"/mnt/claims/corpora/d.jsonl: permission denied for user {os.getuid()} of the pod; allow that user (or its "
        f"group {os.getgid()}) to read it, and to write it where it is a destination or the work volume"
    )
    assert "Traceback" not in pod.log


def test_the_longest_message_stays_within_the_limit(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "input-error=" + "x" * 6000)
    assert code == 64
    assert len(pod.text.encode()) <= MAX_MESSAGE_BYTES
    assert pod.message.cause is Cause.BAD_INPUT


def test_an_altered_stage_file_is_refused(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "done", sha256="0" * 64)
    assert code == 64
    assert "was altered after the run was created" in pod.message.message
    assert not (pod.work / "stages").exists()


def test_a_stage_of_another_kind_is_refused(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "done", kind="verify")
    assert code == 64
    assert pod.message.message.endswith("holds a stage of kind 'publish', but 'verify' was requested")


def test_a_pod_without_a_work_volume_is_refused(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "done", DAPT_WORK="", PET_NNODES="two")
    assert code == 64
    assert "DAPT_WORK is not set" in pod.message.message
    assert "PET_NNODES is 'two', expected a number" in pod.message.message


def test_a_silent_rank_is_killed_after_it_wrote_its_stacks(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "step=1,step=2,sleep=100", DAPT_HANG_FLOOR_SECONDS="1")
    assert (code, pod.message.cause) == (75, Cause.HANG)
    assert pod.message.message.startswith("rank 0 sent no heartbeat for ")
    assert "after its last step (limit 1 s) and counts as hung; the log has the stacks" in pod.message.message
    assert 'fake_stage.py", line' in pod.log
    assert "in _do" in pod.log


def test_a_rank_that_never_makes_a_step_has_the_startup_limit(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "sleep=100", DAPT_STARTUP_TIMEOUT_SECONDS="1")
    assert (code, pod.message.cause) == (75, Cause.HANG)
    assert "before its first step (limit 1 s)" in pod.message.message


def test_long_steps_raise_the_limit(tmp_path: Path) -> None:
    code, _ = run_pod(tmp_path, "step=1,sleep=0.4,step=2,sleep=2,step=3", DAPT_HANG_FLOOR_SECONDS="1")
    assert code == 0


def test_a_stop_lets_the_stage_save(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "touch=started,polled-sleep=100")
    wait_until((pod.work / "started").exists, "the stage")
    assert stop(pod) == 143
    assert (pod.message.cause, pod.message.message) == (Cause.STOPPED, "stop requested; saved at step 3")
    assert (pod.work / "stages/publish-a1/try-1/saved-0").exists()


def test_a_stage_that_never_polls_is_interrupted(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "touch=started,sleep=100")
    wait_until((pod.work / "started").exists, "the stage")
    assert stop(pod) == 143
    assert pod.message.message == (
        "stop requested while nothing could be saved; the next run continues from what is complete"
    )


def test_a_stage_that_does_not_stop_is_killed_within_the_grace_period(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "ignore-stop=0,touch=started,ignore-stop=100", grace=2)
    wait_until((pod.work / "started").exists, "the stage")
    assert stop(pod) == 143
    assert pod.message.message.startswith("rank 0 did not stop within 1 s of SIGTERM")


def test_a_stage_that_finishes_in_spite_of_a_stop_is_done(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "ignore-stop=0,touch=started,wait-for=go")
    wait_until((pod.work / "started").exists, "the stage")
    pod.signal(signal.SIGTERM)
    (pod.work / "go").touch()
    assert pod.wait() == 0
    assert pod.message.parsed_facts() is not None


def test_forked_helpers_of_a_stage_end_at_sigterm(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "pool,polled-sleep=0")
    assert code == 0
    assert "Traceback" not in pod.log


def test_a_killed_agent_takes_its_rank_along(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "touch=started,sleep=100")
    wait_until((pod.work / "started").exists, "the stage")
    (rank,) = pod.rank_pids()
    pod.signal(signal.SIGKILL)
    assert pod.wait() == -9
    wait_until(lambda: not alive(rank), "the rank's end")


def test_a_running_stage_serves_progress_and_metrics(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "step=3,touch=started,wait-for=go")
    wait_until((pod.work / "started").exists, "the stage")

    def read(page: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{pod.progress_port}{page}", timeout=5) as answer:
            return str(answer.read().decode())

    progress = Progress.model_validate_json(read("/progress"))
    metrics = read("/metrics")
    (pod.work / "go").touch()
    assert pod.wait() == 0
    assert (progress.stage, progress.step, progress.loss_nats, progress.activity) == (
        "publish",
        3,
        2.5,
        "stepping",
    )
    assert 'dapt_trainer_loss{name="clinical-llama",namespace="health"} 2.5' in metrics
    assert "dapt_trainer_learning_rate" in metrics


def test_a_taken_port_costs_the_live_view_alone(tmp_path: Path) -> None:
    first = start_pod(tmp_path / "a", "touch=started,wait-for=go")
    wait_until((first.work / "started").exists, "the stage")
    code, second = run_pod(tmp_path / "b", "done", DAPT_PROGRESS_PORT=str(first.progress_port))
    (first.work / "go").touch()
    assert (code, first.wait()) == (0, 0)
    assert "no live progress of this run" in second.log


def test_a_stage_with_one_process_never_loads_torch(tmp_path: Path) -> None:
    code, pod = run_pod(tmp_path, "modules")
    assert code == 0
    assert "torch" not in (pod.work / "modules").read_text().split()
