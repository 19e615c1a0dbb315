"""The cluster port on one machine, with processes that take milliseconds."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.message import encode_message
from dapt_contract.stages.publish import PublishFacts
from dapt_operator.cluster.errors import ConflictError
from dapt_operator.cluster.local import LocalCluster, LocalRunError
from dapt_operator.cluster.local.processes.job_status import STOPPED_UNSAVED
from dapt_operator.cluster.port import Event, Key, ObjectReference
from dapt_operator.stage_run import RunPhase, RunState
from support.launch_builders import fake_manifests, resource, stage_run
from support.local_programs import SAVES, SLEEP, STUBBORN, owner_of, start, state_of
from support.local_runs import pid_of
from support.pod_objects import alive, wait_until

SAY = "import os; open(os.environ['DAPT_TERMINATION_LOG'], 'w').write({text!r})"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path / "run", resource(), None) as local:
        yield local
        local.kill()


def wait_for_end(cluster: LocalCluster) -> RunState:
    wait_until(lambda: state_of(cluster).phase in (RunPhase.SUCCEEDED, RunPhase.FAILED), "the run's end")
    return state_of(cluster)


def job_of(cluster: LocalCluster) -> Any:
    (job,) = cluster.observe(cluster.key).children.jobs
    return job


def conditions(cluster: LocalCluster) -> list[tuple[str, str]]:
    return [(item["type"], item["reason"]) for item in job_of(cluster)["status"]["conditions"]]


def test_a_job_succeeds_with_the_message_of_its_process(cluster: LocalCluster) -> None:
    facts = PublishFacts(destination="file://done", digest="d", files=1, size_bytes=2)
    key = stage_run("done", of=owner_of(cluster)).identity.key
    start(cluster, SAY.format(text=encode_message(key, "publish", facts=facts)))
    state = wait_for_end(cluster)
    assert (state.phase, state.facts) == (RunPhase.SUCCEEDED, facts)
    assert conditions(cluster) == [
        ("SuccessCriteriaMet", "CompletionsReached"),
        ("Complete", "CompletionsReached"),
    ]
    assert state.started is not None
    assert state.completed is not None
    assert state.created is not None
    assert state.created <= state.started <= state.completed


def test_files_of_ended_runs_stay(cluster: LocalCluster) -> None:
    assert cluster.observe(cluster.key).keeps_ended_runs


def test_the_exit_code_of_a_process_is_that_of_its_pod(cluster: LocalCluster) -> None:
    start(cluster, "raise SystemExit(64)")
    state = wait_for_end(cluster)
    assert (state.cause, state.exit_code) == (Cause.BAD_INPUT, 64)
    assert conditions(cluster) == [
        ("FailureTarget", "BackoffLimitExceeded"),
        ("Failed", "BackoffLimitExceeded"),
    ]


def test_a_killed_process_has_the_exit_code_of_a_killed_container(cluster: LocalCluster) -> None:
    start(cluster, "import os; os.kill(os.getpid(), 9)")
    state = wait_for_end(cluster)
    assert (state.cause, state.exit_code) == (Cause.INFRASTRUCTURE, 137)


def test_only_the_last_4096_bytes_of_a_message_are_kept(cluster: LocalCluster) -> None:
    start(cluster, SAY.format(text="a" + "b" * 4096) + "; raise SystemExit(1)")
    wait_for_end(cluster)
    (pod,) = cluster.observe(cluster.key).children.pods
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "b" * 4096


def test_one_failed_process_stops_its_peers(cluster: LocalCluster) -> None:
    wait_for_peer = (
        "import os, time\nwhile not os.path.exists(os.environ['DAPT_WORK'] + '/ready-1'): time.sleep(.01)\n"
    )
    program = f"import os\nif os.environ['PET_NODE_RANK'] == '0':\n  exec({wait_for_peer + 'raise SystemExit(77)'!r})\n"
    start(cluster, program + f"exec({SAVES!r})", nodes=2)
    state = wait_for_end(cluster)
    assert (state.cause, state.exit_code) == (Cause.DIVERGED, 77)
    assert (cluster.folder / "work/saved-1").exists()


def test_a_pod_that_is_taken_away_for_its_peer_is_killed_and_is_no_cause(cluster: LocalCluster) -> None:
    program = (
        "import os, signal, time\n"
        "ready = os.path.join(os.environ['DAPT_WORK'], 'deaf')\n"
        "if os.environ['PET_NODE_RANK'] == '0':\n"
        "    while not os.path.exists(ready): time.sleep(0.01)\n"
        "    raise SystemExit(70)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(ready, 'w').close(); time.sleep(600)"
    )
    run = start(cluster, program, nodes=2, grace=600)
    wait_until(lambda: state_of(cluster).peers_to_end != (), "the first failure")
    assert state_of(cluster).peers_to_end == (f"{run.name}-1",)
    cluster.delete(cluster.key, ObjectReference("Pod", f"{run.name}-1", grace_seconds=0))
    state = wait_for_end(cluster)
    assert (state.cause, state.exit_code) == (Cause.OUT_OF_MEMORY, 70)


def test_a_process_sees_its_environment_volumes_and_ports(cluster: LocalCluster) -> None:
    program = "import json, os, sys; json.dump({'env': dict(os.environ), 'argv': sys.argv[1:]}, open(os.environ['DAPT_WORK'] + '/seen-' + os.environ['PET_NODE_RANK'], 'w'))"  # noqa: E501
    run = start(cluster, program, nodes=2, container={"args": ["--config", "/etc/dapt/stage/stage.json"]})
    wait_for_end(cluster)
    first, second = (json.loads((cluster.folder / f"work/seen-{index}").read_text()) for index in (0, 1))
    assert first["env"]["DAPT_WORK"] == str(cluster.folder / "work")
    assert first["env"]["PET_NODE_RANK"] == "0"
    assert second["env"]["PET_NODE_RANK"] == "1"
    assert first["env"]["PET_MASTER_ADDR"] == second["env"]["PET_MASTER_ADDR"] == "127.0.0.1"
    assert first["env"]["PET_MASTER_PORT"] == second["env"]["PET_MASTER_PORT"]
    assert first["env"]["PET_MASTER_PORT"] not in ("29500", first["env"]["DAPT_PROGRESS_PORT"])
    assert first["env"]["DAPT_PROGRESS_PORT"] != "9400"
    assert first["env"]["DAPT_SCRATCH"] != second["env"]["DAPT_SCRATCH"]
    stage = Path(first["argv"][1])
    assert json.loads(stage.read_text()) == json.loads(run.stage_file.model_dump_json())
    assert first["env"]["DAPT_LOCAL_RUN"] == str(cluster.folder)


def test_the_users_own_caches_are_kept(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    start(cluster, "import os; raise SystemExit(0 if os.environ['XDG_CACHE_HOME'] == '/somewhere' else 3)")
    assert wait_for_end(cluster).exit_code == 0


def test_local_pod_does_not_inherit_the_distributed_environment_of_dapt(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    gang = (
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "NODE_RANK",
        "TORCHELASTIC_RUN_ID",
    )
    for name in gang:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RANKING", "kept")
    start(
        cluster,
        f"import os; raise SystemExit(3 if {{*{gang}}} & {{*os.environ}} or 'RANKING' not in os.environ else 0)",
    )
    assert wait_for_end(cluster).exit_code == 0


def test_credentials_come_from_a_secret_or_from_the_user_and_nothing_else_does(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the user's")
    monkeypatch.setenv("HF_TOKEN", "the user's")
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "dapt-hub"},
        "data": {"HF_TOKEN": "c2VjcmV0"},
        "stringData": {"LD_PRELOAD": "/evil.so", "HF_ENDPOINT": "http://evil"},
    }
    cluster.apply(cluster.key, secret)
    names = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "LD_PRELOAD", "HF_ENDPOINT")
    program = f"import os; raise SystemExit(str([os.environ.get(name) for name in {names}]))"
    run = start(cluster, program, secret_names=("dapt-hub", "dapt-missing"))
    wait_for_end(cluster)
    assert cluster.log_path(run.name).read_text() == "['secret', \"the user's\", None, None]\n"


def test_no_process_imports_from_its_working_folder(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("", ".", "/absolute")))
    run = stage_run("done", of=owner_of(cluster))
    folder = cluster.folder / "pods" / f"{run.name}-0"
    folder.mkdir(parents=True)
    (folder / "received.py").write_text("print('imported')")
    start(cluster, "import os; print(os.environ['PYTHONPATH'], os.getcwd()); import received")
    assert wait_for_end(cluster).phase is RunPhase.FAILED
    first, *_, last = cluster.log_path(run.name).read_text().splitlines()
    assert first == f"/absolute {folder}"
    assert last == "ModuleNotFoundError: No module named 'received'"


def test_output_goes_to_the_log_of_the_process(cluster: LocalCluster) -> None:
    run = start(cluster, "print('rank', __import__('os').environ['PET_NODE_RANK'])", nodes=2)
    wait_for_end(cluster)
    assert cluster.log_path(run.name, 0).read_text() == "rank 0\n"
    assert cluster.log_path(run.name, 1).read_text() == "rank 1\n"


def test_a_job_is_created_once(cluster: LocalCluster) -> None:
    program = "open(__import__('os').environ['DAPT_WORK'] + '/runs', 'a').write('x')"
    start(cluster, program)
    wait_for_end(cluster)
    start(cluster, program)
    assert (cluster.folder / "work/runs").read_text() == "x"


def test_a_command_that_cannot_start_fails_the_job_with_the_reason(cluster: LocalCluster) -> None:
    start(cluster, "", container={"command": ["/no/such/program"]})
    state = wait_for_end(cluster)
    assert state.cause is Cause.INFRASTRUCTURE
    assert state.message == "StartError: [Errno 2] No such file or directory: '/no/such/program'"


def test_a_deadline_stops_and_fails_the_job(cluster: LocalCluster) -> None:
    start(cluster, SAVES, activeDeadlineSeconds=1)
    state = wait_for_end(cluster)
    assert state.cause is Cause.DEADLINE
    assert conditions(cluster)[-1] == ("Failed", "DeadlineExceeded")
    assert (cluster.folder / "work/saved-0").exists()


def test_a_suspended_job_starts_nothing(cluster: LocalCluster) -> None:
    start(cluster, "open(__import__('os').environ['DAPT_WORK'] + '/ran', 'w')", suspend=True)
    state = state_of(cluster)
    assert (state.phase, state.waiting_reason) == (RunPhase.PENDING, "Suspended")
    assert cluster.observe(cluster.key).children.pods == ()
    assert not (cluster.folder / "work/ran").exists()


def test_a_job_of_a_queue_starts_at_once_where_there_is_no_queue(cluster: LocalCluster) -> None:
    of = owner_of(cluster)
    for manifest in fake_manifests(stage_run("done", queue="team", of=of), of):
        cluster.apply(cluster.key, manifest)
    assert wait_for_end(cluster).phase is RunPhase.SUCCEEDED


def test_a_deleted_job_may_save_and_is_gone_with_its_pods(cluster: LocalCluster) -> None:
    run = start(cluster, SAVES)
    wait_until((cluster.folder / "work/ready-0").exists, "the process")
    cluster.delete(cluster.key, ObjectReference("Job", run.name))
    cluster.delete(cluster.key, ObjectReference("Job", run.name))
    wait_until(lambda: not cluster.observe(cluster.key).children.jobs, "the end of the Job")
    assert cluster.observe(cluster.key).children.pods == ()
    assert (cluster.folder / "work/saved-0").exists()
    assert not list((cluster.folder / "objects").glob("job-*"))


def test_a_deleted_job_that_does_not_stop_is_killed_after_its_grace_period(cluster: LocalCluster) -> None:
    run = start(cluster, STUBBORN, grace=1)
    wait_until((cluster.folder / "work/ready-0").exists, "the process")
    pid = pid_of(cluster, run)
    cluster.delete(cluster.key, ObjectReference("Job", run.name))
    wait_until(lambda: not cluster.observe(cluster.key).children.jobs, "the end of the Job")
    assert not alive(pid)


def test_deleting_what_is_not_there_has_no_effect(cluster: LocalCluster) -> None:
    cluster.delete(cluster.key, ObjectReference("Job", "none"))
    cluster.delete(cluster.key, ObjectReference("ConfigMap", "none"))


def test_what_a_process_leaves_behind_is_killed_with_it(cluster: LocalCluster) -> None:
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); print(p.pid, flush=True)"  # noqa: E501
    run = start(cluster, child)
    wait_for_end(cluster)
    assert not alive(int(cluster.log_path(run.name).read_text()))


def test_waiting_ends_when_a_process_ends(cluster: LocalCluster) -> None:
    assert cluster.wait_for_change(0) is False
    start(cluster, "")
    assert cluster.wait_for_change(60) is True
    assert state_of(cluster).phase is RunPhase.FAILED
    assert cluster.wait_for_change(0) is False


def test_closing_stops_what_runs(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        run = start(local, SAVES)
        wait_until((tmp_path / "work/ready-0").exists, "the process")
        pid = pid_of(local, run)
    assert not alive(pid)
    assert (tmp_path / "work/saved-0").exists()
    with LocalCluster(tmp_path, resource(), None) as again:
        assert state_of(again).cause is Cause.STOPPED


def test_killing_ends_at_once_what_does_not_stop(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        run = start(local, STUBBORN, grace=600)
        wait_until((tmp_path / "work/ready-0").exists, "the process")
        pid = pid_of(local, run)
        threading.Timer(0.2, local.kill).start()
    assert not alive(pid)
    with LocalCluster(tmp_path, resource(), None) as again:
        state = state_of(again)
    assert (state.cause, state.exit_code, state.message) == (Cause.STOPPED, 143, STOPPED_UNSAVED)


KILLED = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from dapt_operator.cluster.local import LocalCluster
from support.launch_builders import resource
from support.local_programs import start, {program}
from support.local_runs import pid_of
local = LocalCluster(Path({folder!r}), resource(), None)
run = start(local, {program}, nodes=2)
print(*(pid_of(local, run, index) for index in (0, 1)), flush=True)
time.sleep(600)
"""


def test_a_killed_local_run_takes_its_processes_along_and_costs_no_retry(tmp_path: Path) -> None:
    path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    code = KILLED.format(path=path, folder=str(tmp_path), program="STUBBORN")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        pids = [int(pid) for pid in victim.stdout.readline().split()]
        wait_until(
            lambda: all((tmp_path / f"work/ready-{index}").exists() for index in (0, 1)), "the processes"
        )
        victim.kill()
    wait_until(lambda: not any(alive(pid) for pid in pids), "the processes' end")
    with LocalCluster(tmp_path, resource(), None) as again:
        state = state_of(again)
        assert (state.phase, state.cause) == (RunPhase.FAILED, Cause.DISRUPTION)
        assert state.message == (
            "LocalRunEnded: the local run was ended while this stage ran; the next run continues from what is complete"
        )


def test_leftovers_of_a_killed_run_are_killed_at_the_next_start(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"DAPT_LOCAL_RUN": str(tmp_path.resolve())}
    leftover = subprocess.Popen([sys.executable, "-c", SLEEP], env=environment)
    with LocalCluster(tmp_path, resource(), None):
        assert leftover.wait() == -9


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None), pytest.raises(LocalRunError) as refused:
        LocalCluster(tmp_path, resource(), None)
    assert str(refused.value) == (
        f"{tmp_path} is in use by another dapt run (process {os.getpid()}): wait for it, or stop it, or choose another "
        "metadata.name"
    )


def test_a_lock_that_a_killed_run_left_to_its_newest_child_is_waited_for(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with (tmp_path / ".lock").open("w") as left:
        left.write(str(ended.pid))
        left.flush()
        fcntl.flock(left, fcntl.LOCK_EX)
        release = threading.Timer(0.3, lambda: fcntl.flock(left, fcntl.LOCK_UN))
        release.start()
        with LocalCluster(tmp_path, resource(), None):
            release.join()


def test_two_adaptations_run_at_once_with_different_ports(tmp_path: Path) -> None:
    program = "import os, time\nw = os.environ['DAPT_WORK']\nopen(w + '/ports', 'w').write(os.environ['PET_MASTER_PORT'] + ' ' + os.environ['DAPT_PROGRESS_PORT'])\nopen(w + '/ready', 'w')\nwhile not os.path.exists(w + '/go'): time.sleep(.01)"  # noqa: E501
    with (
        LocalCluster(tmp_path / "a", resource("a"), None) as first,
        LocalCluster(tmp_path / "b", resource("b"), None) as second,
    ):
        both = (first, second)
        for local in both:
            start(local, program)
        wait_until(lambda: all((local.folder / "work/ready").exists() for local in both), "both")
        ports = [port for local in both for port in (local.folder / "work/ports").read_text().split()]
        assert len(set(ports)) == 4
        for local in both:
            (local.folder / "work/go").touch()
        assert [wait_for_end(local).exit_code for local in both] == [0, 0]


def test_the_status_is_written_as_in_the_cluster(cluster: LocalCluster) -> None:
    before = cluster.observe(cluster.key).resource
    assert before is not None
    cluster.write_status(cluster.key, {"phase": "Preparing"}, before["metadata"]["resourceVersion"])
    shown = YAML(typ="safe").load((cluster.folder / "status.yaml").read_text())
    assert (shown["apiVersion"], shown["kind"]) == ("dapt.dev/v1alpha1", "DomainAdaptation")
    assert shown["metadata"]["uid"] == before["metadata"]["uid"]
    assert shown["status"] == {"phase": "Preparing"}
    assert "spec" not in shown


def test_a_status_written_over_another_is_a_conflict_and_an_equal_one_is_not_written(
    cluster: LocalCluster,
) -> None:
    before = cluster.observe(cluster.key).resource
    assert before is not None
    version = before["metadata"]["resourceVersion"]
    cluster.write_status(cluster.key, {"phase": "Preparing"}, version)
    with pytest.raises(ConflictError, match="clinical-llama has resource version 2, not 1"):
        cluster.write_status(cluster.key, {"phase": "Ready"}, version)
    cluster.write_status(cluster.key, {"phase": "Preparing"}, "2")
    after = cluster.observe(cluster.key).resource
    assert after is not None
    assert after["metadata"]["resourceVersion"] == "2"


def test_events_are_appended(cluster: LocalCluster) -> None:
    cluster.record(cluster.key, Event("Normal", "StageStarted", "prepare has started"))
    (line,) = (cluster.folder / "events.jsonl").read_text().splitlines()
    assert {name: value for name, value in json.loads(line).items() if name != "time"} == {
        "type": "Normal",
        "reason": "StageStarted",
        "message": "prepare has started",
    }


def test_identity_and_status_outlive_a_run_and_a_changed_spec_raises_the_generation(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        first = local.observe(local.key).resource
        assert first is not None
        local.write_status(local.key, {"phase": "Preparing"}, "1")
    with LocalCluster(tmp_path, resource(), None) as local:
        second = local.observe(local.key).resource
        assert second is not None
        assert second["metadata"] == first["metadata"] | {"resourceVersion": "2"}
        assert second["status"] == {"phase": "Preparing"}
    with LocalCluster(tmp_path, resource(suspend=True), None) as local:
        third = local.observe(local.key).resource
        assert third is not None
        assert third["metadata"]["generation"] == 2
        assert third["metadata"]["uid"] == first["metadata"]["uid"]


def test_a_frozen_block_cannot_be_changed(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource(), None) as local:
        local.write_status(local.key, {"frozen": {"model": True}}, "1")
    with pytest.raises(LocalRunError) as refused:
        LocalCluster(tmp_path, resource(model={"source": "file://another"}), None)
    assert refused.value.problems == (
        "spec.model cannot change any more, since the stage baseline that reads it has started: restore it, or create"
        f" a new DomainAdaptation (this run is in {tmp_path}; --fresh starts over, another metadata.name keeps both)",
    )
    with LocalCluster(tmp_path, resource(suspend=True), None):
        pass


def test_the_folder_of_another_adaptation_is_refused(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, resource("first"), None):
        pass
    with pytest.raises(LocalRunError, match=r"holds the run of first, not of second: choose another folder"):
        LocalCluster(tmp_path, resource("second"), None)


def test_a_damaged_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects/job-x.json").write_text("{")
    with pytest.raises(LocalRunError, match=r"job-x\.json: not an object that dapt wrote"):
        LocalCluster(tmp_path, resource(), None)


def test_another_key_is_unknown(cluster: LocalCluster) -> None:
    world = cluster.observe(Key("elsewhere", "nobody"))
    assert world.resource is None
    assert world.children.jobs == ()
