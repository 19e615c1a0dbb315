"""Tests what the status and the metrics keep of a preflight."""

from __future__ import annotations

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.pod.preflight import PreflightReading
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_operator.runtime.metrics import exposition, summarize
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World

READING = PreflightReading(
    seconds=4.2,
    all_reduce_bytes_per_second=9.0e10,
    point_to_point_bytes_per_second=4.0e10,
    slowest_link="rank 1 on node 0 (gpu-0) to rank 9 on node 1 (gpu-1)",
    shared_memory_bytes=64 * 2**30,
    write_bytes_per_second=1.0e9,
    read_bytes_per_second=2.0e9,
    clock_difference_seconds=0.002,
    warnings=("NCCL will use TCP on node 1 (gpu-1): it has RDMA devices (mlx5_0)",),
)


def reading_of(stage: StageFile) -> Stays:
    return Stays(Progress(run_key=stage.run.key, stage=stage.kind, preflight=READING))


def measured() -> World:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, reading_of)
    world.settle()
    return world


def test_status_keeps_the_numbers_of_a_training_stage() -> None:
    world = measured()
    preflight = dict(world.status["preflight"])
    assert preflight.pop("stage") == "pretrain"
    assert preflight.pop("runKey") == world.status["stages"][-1]["runKey"]
    assert preflight == {
        "seconds": 4.2,
        "allReduceBytesPerSecond": 9.0e10,
        "pointToPointBytesPerSecond": 4.0e10,
        "slowestLink": READING.slowest_link,
        "sharedMemoryBytes": 64 * 2**30,
        "writeBytesPerSecond": 1.0e9,
        "readBytesPerSecond": 2.0e9,
        "clockDifferenceSeconds": 0.002,
        "warnings": list(READING.warnings),
    }


def test_preflight_is_written_once_and_outlives_its_run() -> None:
    world = measured()
    before = world.status["preflight"]
    writes = world.cluster.writes
    world.cluster.advance(5)
    world.cluster.run_pods(world.key, reading_of)
    assert world.reconcile().is_empty
    assert world.cluster.writes == writes
    world.live()
    assert world.status["preflight"] == before


def test_preflight_of_a_measuring_stage_is_not_kept() -> None:
    world = World()
    world.live_until("baseline")
    world.cluster.run_pods(world.key, reading_of)
    world.settle()
    assert "preflight" not in world.status


def test_failed_preflight_is_retried_and_its_cause_is_in_the_status() -> None:
    world = World()
    world.live_until("pretrain")
    text = "preflight: node 1 (gpu-1) shows 7 of the 8 GPUs that its ranks need: cordon the node"
    failed: list[str] = []

    def once(stage: StageFile) -> Ends | Stays:
        if stage.kind != "pretrain" or failed:
            return healthy(stage)
        failed.append(stage.run.key)
        return Ends(ExitCode.INFRASTRUCTURE, cause=Cause.INFRASTRUCTURE, message=text)

    world.live(once)
    runs = [stage for stage in world.status["stages"] if stage["kind"] == "pretrain"]
    assert runs[-1]["state"] == "Succeeded"
    assert world.status["usage"]["restarts"] == 1


def test_metrics_show_the_numbers_of_the_status() -> None:
    world = measured()
    resource = world.cluster.observe(world.key).resource
    assert resource is not None
    lines = exposition([summarize(resource)]).decode().splitlines()
    found = {
        line.partition("{")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("dapt_preflight_")
    }
    assert found == {
        "dapt_preflight_all_reduce_bytes_per_second": 9.0e10,
        "dapt_preflight_point_to_point_bytes_per_second": 4.0e10,
        "dapt_preflight_shared_memory_bytes": 64 * 2**30,
        "dapt_preflight_write_bytes_per_second": 1.0e9,
        "dapt_preflight_read_bytes_per_second": 2.0e9,
        "dapt_preflight_clock_difference_seconds": 0.002,
        "dapt_preflight_warnings": 1.0,
    }
