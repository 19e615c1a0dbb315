"""Renders the live view of `dapt run` in a terminal, as a pure function of a snapshot."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dapt_contract.pod.progress import Progress
from dapt_operator.cli.display.stage_rows import Snapshot, StageRow, folded, stage_rows
from dapt_operator.number_format import clock, count, duration, perplexity
from dapt_operator.report.run_facts import restarts, restarts_text

_MARKS = {
    "Pending": ("·", "dim"),
    "Waiting": ("…", "cyan"),
    "Running": ("▶", "bold cyan"),
    "Succeeded": ("✓", "green"),
    "Failed": ("✗", "bold red"),
    "Suspended": ("‖", "yellow"),
}
_BAR_WIDTH = 20
_HUGE_LOSS = 1e5
"""From here on decimals say nothing: it diverged."""


def render(snapshot: Snapshot) -> RenderableType:
    """Return the stages with states and times; a running one with its step, speed, loss, perplexities and time left."""
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in folded(stage_rows(snapshot)):
        mark, style = _MARKS[row.state]
        seconds = "" if row.seconds is None else duration(row.seconds)
        table.add_row(Text(mark, style), Text(row.title, style), seconds, _detail(row))
    phase = snapshot.status.phase or "Pending"
    since = "" if snapshot.elapsed_seconds is None else f"  {clock(snapshot.elapsed_seconds)}"
    head = Text.assemble((snapshot.name, "bold"), f"  {phase}{since}")
    parts: list[RenderableType] = [head, table]
    if num_restarts := restarts(snapshot.status):
        parts.append(Text(restarts_text(num_restarts), style="yellow"))
    return Group(*parts)


def _detail(row: StageRow) -> Text:
    if row.progress is None:
        return Text(row.note, style="" if row.state == "Failed" else "dim")
    return Text(f"{bar(row.progress.fraction)}  {progress_and_forecast(row)}")


def progress_and_forecast(row: StageRow) -> str:
    """Return live progress and, once readings allow one, the forecast, in one line; empty without progress."""
    line = progress_line(row.progress) if row.progress is not None else ""
    return " · ".join(part for part in (line, row.forecast) if part)


def bar(fraction: float) -> str:
    """Return a bar of fixed width with its percentage."""
    share = max(0.0, min(1.0, fraction))
    filled = round(share * _BAR_WIDTH)
    return "█" * filled + "░" * (_BAR_WIDTH - filled) + f" {100 * share:3.0f} %"


def progress_line(progress: Progress) -> str:
    """Return live progress in one line; what is unknown is left out."""
    parts = [progress.activity] if progress.activity else []
    if progress.step is not None and progress.total_steps:
        parts.append(f"step {progress.step}/{progress.total_steps}")
    if progress.tokens_per_second:
        parts.append(f"{count(progress.tokens_per_second)} tokens/s")
    if progress.loss_nats is not None:
        loss = progress.loss_nats
        parts.append(f"loss {loss:.3f}" if abs(loss) < _HUGE_LOSS else f"loss {loss:.1e}")
    if progress.domain_perplexity is not None or progress.general_perplexity is not None:
        parts.append(
            f"last perplexity domain {perplexity(progress.domain_perplexity)},"
            f" general {perplexity(progress.general_perplexity)}"
        )
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    if progress.slow_rank:
        parts.append(progress.slow_rank)
    return " · ".join(parts)
