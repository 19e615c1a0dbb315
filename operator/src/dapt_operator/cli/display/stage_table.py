"""Formats what each stage takes as a table."""

from __future__ import annotations

from collections.abc import Sequence

from dapt_operator.number_format import plural, size
from dapt_operator.plan.sizing.resolve import RankLayout
from dapt_operator.plan.sizing.stage_needs import StageNeed


def stage_table(needs: Sequence[StageNeed], *, has_gpus: bool) -> list[str]:
    """Return the lines: a head, and a line for each stage.

    Args:
        needs: of the stages.
        has_gpus: whether the profile has GPUs; else memory is that of a process.
    """
    if not needs:
        return []
    unit = "GPU" if has_gpus else "process"
    head = ("stage", "runs on", f"memory a {unit}", "memory a node", "work volume", "sent a step", "how")
    rows = [head, *(_cells(need, has_gpus) for need in needs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [_line(row, widths) for row in rows]


def _cells(need: StageNeed, has_gpus: bool) -> tuple[str, ...]:
    memory = f"{_gib(need.memory_bytes)} of {_gib(need.limit_bytes)} GiB" if need.memory_bytes else "-"
    return (
        need.stage,
        _ranks(need.layout, has_gpus),
        memory,
        size(need.host_bytes),
        size(need.disk_bytes) if need.disk_bytes else "-",
        size(need.traffic_bytes) if need.traffic_bytes else "-",
        need.how,
    )


def _ranks(layout: RankLayout, has_gpus: bool) -> str:
    if has_gpus and not layout.accelerators_per_node:
        return "CPU"
    unit = ("GPU", "GPUs") if has_gpus else ("process", "processes")
    of_node = plural(layout.processes_per_node, *unit)
    return of_node if layout.nodes == 1 else f"{layout.nodes} nodes x {of_node}"


def _gib(value: float) -> str:
    return f"{value / 2**30:.1f}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    # Numbers end at the same column; names and the last column begin at one.
    cells = [
        cell.ljust(width) if column in (0, 1, len(row) - 1) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return ("  " + "  ".join(cells)).rstrip()
