"""Tests how the findings of all ranks are judged: the value, the bound, the node and the next step."""

from __future__ import annotations

from typing import Any

from dapt_contract.pod.preflight import MAX_PREFLIGHT_CHARACTERS, PreflightBounds
from dapt_trainer.preflight.findings import Judgement, RankFindings, judge

GIB, MIB = 2**30, 2**20


def findings(*, nodes: int = 2, ranks_per_node: int = 2, **changes: dict[int, Any]) -> list[RankFindings]:
    """Return healthy findings; a change maps ranks to the value of that field."""
    world = nodes * ranks_per_node
    made = []
    for rank in range(world):
        node, is_first = divmod(rank, ranks_per_node)[0], rank % ranks_per_node == 0
        fields = {
            "rank": rank,
            "node": node,
            "node_name": f"gpu-{node}",
            "peer": (rank - ranks_per_node) % world,
            "received_bytes_per_second": 40.0 * GIB,
            "shared_memory_bytes": 64 * GIB,
            "write_bytes_per_second": 900.0 * MIB if is_first else None,
            "read_bytes_per_second": 1800.0 * MIB if is_first else None,
        }
        fields |= {name: values[rank] for name, values in changes.items() if rank in values}
        made.append(RankFindings.model_validate(fields))
    return made


def judged(
    found: list[RankFindings], *, all_reduce: float | None = 100.0 * GIB, gpus: bool = True, **bounds: float
) -> Judgement:
    return judge(
        found,
        PreflightBounds(**bounds),
        all_reduce_bytes_per_second=all_reduce,
        seconds=4.25,
        uses_gpus=gpus,
    )


def test_healthy_ranks_give_a_reading_without_warnings() -> None:
    judgement = judged(
        findings(received_bytes_per_second={3: 30.0 * GIB}, write_bytes_per_second={2: 700.0 * MIB}),
        min_all_reduce_gib_per_second=80,
        min_point_to_point_gib_per_second=20,
        min_shared_memory_mib=1024,
        min_write_mib_per_second=500,
        min_read_mib_per_second=500,
        max_clock_difference_seconds=1,
    )
    assert judgement.failures == ()
    assert judgement.reading.model_dump() == {
        "seconds": 4.25,
        "all_reduce_bytes_per_second": 100.0 * GIB,
        "point_to_point_bytes_per_second": 30.0 * GIB,
        "slowest_link": "rank 1 on node 0 (gpu-0) to rank 3 on node 1 (gpu-1)",
        "shared_memory_bytes": 64 * GIB,
        "write_bytes_per_second": 700.0 * MIB,
        "read_bytes_per_second": 1800.0 * MIB,
        "clock_difference_seconds": 0.0,
        "warnings": (),
    }


def test_nothing_is_judged_without_bounds() -> None:
    slow = findings(received_bytes_per_second=dict.fromkeys(range(4), 1.0), write_bytes_per_second={0: 1.0})
    assert judged(slow, all_reduce=1.0).failures == ()


def test_single_rank_has_no_links_and_one_clock() -> None:
    alone = findings(nodes=1, ranks_per_node=1, peer={0: None}, received_bytes_per_second={0: None})
    judgement = judged(alone, all_reduce=None, min_point_to_point_gib_per_second=10)
    assert judgement.failures == ()
    reading = judgement.reading
    assert (reading.point_to_point_bytes_per_second, reading.slowest_link) == (None, "")
    assert reading.clock_difference_seconds is None


def test_slow_link_between_two_nodes_names_both_ends() -> None:
    slow = findings(received_bytes_per_second={3: 0.8 * GIB})
    assert judged(slow, min_point_to_point_gib_per_second=10).failures == (
        "preflight: the slowest link, rank 1 on node 0 (gpu-0) to rank 3 on node 1 (gpu-1), carries 0.8 GiB/s; "
        "preflight.minPointToPointGiBPerSecond of the profile accepts 10 GiB/s or more: look at the cable and the "
        "network cards of these two nodes, or cordon one of them",
    )


def test_node_whose_links_are_slow_both_ways_is_suspected() -> None:
    # Rank 1 is all of node 1: it receives slowly, and node 2 receives slowly from it.
    slow = findings(nodes=4, ranks_per_node=1, received_bytes_per_second={1: 1.0 * GIB, 2: 1.1 * GIB})
    (failure,) = judged(slow, min_point_to_point_gib_per_second=10).failures
    assert failure.endswith(
        ": both directions of node 1 (gpu-1) are the slowest, so cordon that node and look at its network card"
    )


def test_no_node_is_suspected_where_all_links_are_slow() -> None:
    slow = findings(nodes=4, ranks_per_node=1, received_bytes_per_second=dict.fromkeys(range(4), 1.0 * GIB))
    (failure,) = judged(slow, min_point_to_point_gib_per_second=10).failures
    assert failure.endswith("the network cards of these two nodes, or cordon one of them")


def test_every_value_below_its_bound_is_reported_at_once() -> None:
    poor = findings(
        write_bytes_per_second={2: 3.0 * MIB},
        read_bytes_per_second={0: 4.0 * MIB},
        shared_memory_bytes={2: 64 * MIB, 3: 64 * MIB},
        clock_offset_seconds={2: -7.5, 3: -7.5},
    )
    assert judged(
        poor,
        all_reduce=2.0 * GIB,
        min_all_reduce_gib_per_second=80,
        min_shared_memory_mib=1024,
        min_write_mib_per_second=50,
        min_read_mib_per_second=50,
        max_clock_difference_seconds=1,
    ).failures == (
        "preflight: the all-reduce over 4 ranks has a bus bandwidth of 2 GiB/s; preflight.minAllReduceGiBPerSecond of "
        "the profile accepts 80 GiB/s or more: look at NVLink and the network of the nodes; its slowest link is "
        "rank 2 on node 1 (gpu-1) to rank 0 on node 0 (gpu-0)",
        "preflight: node 0 (gpu-0) reads from the work volume with 4 MiB/s; preflight.minReadMiBPerSecond of the "
        "profile accepts 50 MiB/s or more: look at the storage and at this node's way to it, or lower the bound",
        "preflight: node 1 (gpu-1) writes to the work volume with 3 MiB/s; preflight.minWriteMiBPerSecond of the "
        "profile accepts 50 MiB/s or more: look at the storage and at this node's way to it, or lower the bound",
        "preflight: node 1 (gpu-1) has a /dev/shm of 64 MiB; preflight.minSharedMemoryMiB of the profile accepts "
        "1024 MiB or more: mount an emptyDir of medium Memory at /dev/shm, or raise the pod's memory",
        "preflight: the clock of node 1 (gpu-1) is 7.5 s behind that of node 0 (gpu-0); "
        "preflight.maxClockDifferenceSeconds of the profile accepts 1 s at most: repair the time service of that node",
    )


def test_warnings_name_the_node_and_fail_nothing() -> None:
    poor = findings(
        reason_for_sockets={0: "", 2: "it has RDMA devices (mlx5_0), and the image has no libibverbs.so.1"},
        shared_memory_bytes={0: 64 * MIB, 1: 64 * MIB},
        clock_offset_seconds={2: 60.0, 3: 60.0},
    )
    judgement = judged(poor)
    assert judgement.failures == ()
    assert judgement.reading.warnings[:2] == (
        "NCCL will use TCP on node 1 (gpu-1): it has RDMA devices (mlx5_0), and the image has no libibverbs.so.1",
        "node 0 (gpu-0) has a /dev/shm of 64 MiB, and NCCL may need 128 MiB",
    )
    assert judged(poor, gpus=False).reading.warnings == judgement.reading.warnings[2:]
    assert judgement.reading.clock_difference_seconds == 60.0


def test_many_warnings_stay_within_their_bounds() -> None:
    poor = findings(nodes=20, reason_for_sockets=dict.fromkeys(range(40), "x" * 500))
    warnings = judged(poor).reading.warnings
    assert len(warnings) == 8
    assert warnings[-1] == "13 more warnings are in the log of rank 0"
    assert all(len(text) <= MAX_PREFLIGHT_CHARACTERS for text in warnings)
