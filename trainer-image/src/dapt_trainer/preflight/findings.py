"""Judges what all ranks have found: one reading, with failures and warnings by cause and node. It needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapt_contract.base import Contract
from dapt_contract.pod.preflight import (
    MAX_PREFLIGHT_CHARACTERS,
    MAX_PREFLIGHT_WARNINGS,
    PreflightBounds,
    PreflightReading,
)
from dapt_contract.sentences import shortened

_GIB, _MIB = 2**30, 2**20
USUAL_CLOCK_DIFFERENCE_SECONDS = 5.0
"""Above it a warning: times in logs, events and checkpoints of such nodes cannot be compared."""
SHARED_MEMORY_BYTES_A_RANK = 64 * _MIB
"""Below it a warning where ranks use GPUs: NCCL and data loaders share buffers there."""


class RankFindings(Contract):
    """Holds what one rank has found; the ranks exchange it as JSON."""

    rank: int
    node: int
    node_name: str
    peer: int | None = None
    """Rank that it received from; None: there is one rank."""
    received_bytes_per_second: float | None = None
    clock_offset_seconds: float = 0.0
    """Its clock less that of rank 0."""
    shared_memory_bytes: int | None = None
    write_bytes_per_second: float | None = None
    """Measured by the first rank of each node alone."""
    read_bytes_per_second: float | None = None
    reason_for_sockets: str = ""
    """Why NCCL would not use this node's RDMA devices."""

    @property
    def place(self) -> str:
        """Return the node, for messages."""
        return f"node {self.node} ({self.node_name})"


@dataclass(frozen=True)
class Judgement:
    """Holds the reading, and one sentence for each failure."""

    reading: PreflightReading
    failures: tuple[str, ...]


@dataclass(frozen=True)
class _Bound:
    """Describes one bound of the profile and what is done when it is not kept."""

    field: str
    value: float | None
    unit: str
    bytes_a_unit: float
    advice: str

    def refusal(self, subject: str, bytes_per_second: float | None) -> str | None:
        """Return the sentence about a value below the bound; None where it is kept or not given."""
        if self.value is None or bytes_per_second is None:
            return None
        value = bytes_per_second / self.bytes_a_unit
        if value >= self.value:
            return None
        return (
            f"preflight: {subject} {value:.3g} {self.unit}; preflight.{self.field} of the profile accepts "
            f"{self.value:g} {self.unit} or more: {self.advice}"
        )


def judge(
    findings: Sequence[RankFindings],
    bounds: PreflightBounds,
    *,
    all_reduce_bytes_per_second: float | None,
    seconds: float,
    uses_gpus: bool,
) -> Judgement:
    """Return the reading of all ranks, and what is not accepted.

    Args:
        findings: of every rank, in their order.
        bounds: of the profile.
        all_reduce_bytes_per_second: bus bandwidth over all ranks; None: there is one.
        seconds: that the preflight took.
        uses_gpus: whether the ranks compute on accelerators.
    """
    failures: list[str | None] = [
        _judge_links(findings, bounds),
        _judge_all_reduce(findings, bounds, all_reduce_bytes_per_second),
        *_judge_nodes(findings, bounds),
        _judge_clocks(findings, bounds),
    ]
    slowest = _slowest_link(findings)
    nodes = {finding.node for finding in findings}
    shared = [finding.shared_memory_bytes for finding in findings]
    reading = PreflightReading(
        seconds=round(seconds, 3),
        all_reduce_bytes_per_second=_whole(all_reduce_bytes_per_second),
        point_to_point_bytes_per_second=_whole(slowest.received_bytes_per_second) if slowest else None,
        slowest_link=shortened(_link_text(slowest, findings), MAX_PREFLIGHT_CHARACTERS) if slowest else "",
        shared_memory_bytes=None if None in shared else min(size for size in shared if size is not None),
        write_bytes_per_second=_least([finding.write_bytes_per_second for finding in findings]),
        read_bytes_per_second=_least([finding.read_bytes_per_second for finding in findings]),
        clock_difference_seconds=round(_clock_difference(findings), 4) if len(nodes) > 1 else None,
        warnings=_warnings(findings, bounds, uses_gpus=uses_gpus),
    )
    return Judgement(reading, tuple(failure for failure in failures if failure is not None))


def _whole(value: float | None) -> float | None:
    return None if value is None else float(round(value))


def _least(values: Sequence[float | None]) -> float | None:
    return _whole(min((value for value in values if value is not None), default=None))


def _slowest_link(findings: Sequence[RankFindings]) -> RankFindings | None:
    measured = [finding for finding in findings if finding.received_bytes_per_second is not None]
    return min(measured, key=lambda finding: finding.received_bytes_per_second or 0.0, default=None)


def _link_text(finding: RankFindings, findings: Sequence[RankFindings]) -> str:
    peer = next((other for other in findings if other.rank == finding.peer), None)
    sender = f"rank {finding.peer} on {peer.place}" if peer else f"rank {finding.peer}"
    return f"{sender} to rank {finding.rank} on {finding.place}"


def _judge_links(findings: Sequence[RankFindings], bounds: PreflightBounds) -> str | None:
    slowest = _slowest_link(findings)
    if slowest is None:
        return None
    suspect = _suspected_node(findings)
    bound = _Bound(
        "minPointToPointGiBPerSecond",
        bounds.min_point_to_point_gib_per_second,
        "GiB/s",
        _GIB,
        f"both directions of {suspect} are the slowest, so cordon that node and look at its network card"
        if suspect
        else "look at the cable and the network cards of these two nodes, or cordon one of them",
    )
    text = _link_text(slowest, findings)
    return bound.refusal(f"the slowest link, {text}, carries", slowest.received_bytes_per_second)


def _suspected_node(findings: Sequence[RankFindings]) -> str:
    """Return the node whose links are the slowest in both directions; empty with fewer than three nodes.

    A slow node has no fast link, while each of its neighbours has one to another node.
    """
    node_of = {finding.rank: finding.node for finding in findings}
    best: dict[int, float] = {}
    for finding in findings:
        speed, sender = finding.received_bytes_per_second, node_of.get(finding.peer or 0)
        if speed is None or sender is None or sender == finding.node:
            continue
        for node in (sender, finding.node):
            best[node] = max(best.get(node, 0.0), speed)
    if len(best) < 3:
        return ""
    slowest, second = sorted(best, key=lambda node: best[node])[:2]
    if best[slowest] * 2 > best[second]:
        return ""
    return next(finding.place for finding in findings if finding.node == slowest)


def _judge_all_reduce(
    findings: Sequence[RankFindings], bounds: PreflightBounds, bytes_per_second: float | None
) -> str | None:
    slowest = _slowest_link(findings)
    link = f"; its slowest link is {_link_text(slowest, findings)}" if slowest else ""
    bound = _Bound(
        "minAllReduceGiBPerSecond",
        bounds.min_all_reduce_gib_per_second,
        "GiB/s",
        _GIB,
        f"look at NVLink and the network of the nodes{link}",
    )
    return bound.refusal(
        f"the all-reduce over {len(findings)} ranks has a bus bandwidth of", bytes_per_second
    )


def _judge_nodes(findings: Sequence[RankFindings], bounds: PreflightBounds) -> list[str | None]:
    write = _Bound(
        "minWriteMiBPerSecond",
        bounds.min_write_mib_per_second,
        "MiB/s",
        _MIB,
        "look at the storage and at this node's way to it, or lower the bound",
    )
    read = _Bound("minReadMiBPerSecond", bounds.min_read_mib_per_second, "MiB/s", _MIB, write.advice)
    shared = _Bound(
        "minSharedMemoryMiB",
        bounds.min_shared_memory_mib,
        "MiB",
        _MIB,
        "mount an emptyDir of medium Memory at /dev/shm, or raise the pod's memory",
    )
    refusals: list[str | None] = []
    for finding in _first_of_nodes(findings):
        refusals += [
            write.refusal(f"{finding.place} writes to the work volume with", finding.write_bytes_per_second),
            read.refusal(f"{finding.place} reads from the work volume with", finding.read_bytes_per_second),
            shared.refusal(f"{finding.place} has a /dev/shm of", float(finding.shared_memory_bytes or 0)),
        ]
    return refusals


def _first_of_nodes(findings: Sequence[RankFindings]) -> list[RankFindings]:
    by_node: dict[int, RankFindings] = {}
    for finding in findings:
        by_node.setdefault(finding.node, finding)
    return list(by_node.values())


def _clock_difference(findings: Sequence[RankFindings]) -> float:
    offsets = [finding.clock_offset_seconds for finding in findings]
    return max(offsets) - min(offsets)


def _clock_text(findings: Sequence[RankFindings]) -> str:
    """Return how far the node whose clock is the furthest from the middle one's is from it."""
    nodes = _first_of_nodes(findings)
    middle = sorted(nodes, key=lambda node: node.clock_offset_seconds)[len(nodes) // 2]
    furthest = max(nodes, key=lambda node: abs(node.clock_offset_seconds - middle.clock_offset_seconds))
    difference = furthest.clock_offset_seconds - middle.clock_offset_seconds
    direction = "ahead of" if difference > 0 else "behind"
    return f"the clock of {furthest.place} is {abs(difference):.3g} s {direction} that of {middle.place}"


def _judge_clocks(findings: Sequence[RankFindings], bounds: PreflightBounds) -> str | None:
    most = bounds.max_clock_difference_seconds
    if most is None or _clock_difference(findings) <= most:
        return None
    return (
        f"preflight: {_clock_text(findings)}; preflight.maxClockDifferenceSeconds of the profile accepts {most:g} s "
        "at most: repair the time service of that node"
    )


def _warnings(
    findings: Sequence[RankFindings], bounds: PreflightBounds, *, uses_gpus: bool
) -> tuple[str, ...]:
    nodes = _first_of_nodes(findings)
    texts: list[str] = []
    if uses_gpus and len(nodes) > 1:
        texts += [
            f"NCCL will use TCP on {node.place}: {node.reason_for_sockets}"
            for node in nodes
            if node.reason_for_sockets
        ]
    for node in nodes:
        needed = SHARED_MEMORY_BYTES_A_RANK * sum(finding.node == node.node for finding in findings)
        size = node.shared_memory_bytes or 0
        if uses_gpus and size < needed and bounds.min_shared_memory_mib is None:
            texts.append(
                f"{node.place} has a /dev/shm of {size / _MIB:,.0f} MiB, and NCCL may need {needed / _MIB:,.0f} MiB"
            )
    is_judged = bounds.max_clock_difference_seconds is not None
    if not is_judged and _clock_difference(findings) > USUAL_CLOCK_DIFFERENCE_SECONDS:
        texts.append(
            f"{_clock_text(findings)}: their times cannot be compared; repair the node's time service"
        )
    if len(texts) > MAX_PREFLIGHT_WARNINGS:
        left = len(texts) - MAX_PREFLIGHT_WARNINGS + 1
        texts = [*texts[: MAX_PREFLIGHT_WARNINGS - 1], f"{left} more warnings are in the log of rank 0"]
    return tuple(shortened(text, MAX_PREFLIGHT_CHARACTERS) for text in texts)
