"""How a run ends on the screen: table, answers, report, and one sentence with the next step."""

from __future__ import annotations

from rich.console import Console

from dapt_operator.api.conditions import PUBLISHED
from dapt_operator.api.status import DomainAdaptationStatus
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.folders import RunFolder
from dapt_operator.cli.outcome import candidates_table, outcome_table, read_outcome, sample_lines
from dapt_operator.cli.snapshot import Snapshot


def conclude(
    folder: RunFolder, status: DomainAdaptationStatus, console: Console, *, with_report: bool
) -> None:
    """Show what came out, and write the page if it is asked for.

    Raises:
        UserError: the model was not published; the sentence says why and what to do.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    outcome = read_outcome(folder.work, status)
    for table in (candidates_table(status), outcome_table(outcome)):
        if table is not None:
            console.print()
            console.print(table)
    for line in ["", *sample_lines(outcome)] if outcome.samples else []:
        say(line)
    console.print()
    if with_report:
        _build_page(folder, console)
    if folder.report.is_file():
        say(f"report: {folder.report}")
    shown = Snapshot(folder.name, status)
    if shown.finished is None or shown.finished.reason != PUBLISHED:
        raise UserError(_why(folder, shown))
    if status.output is not None and status.output.destination is not None:
        say(f"model:  {status.output.destination.removeprefix('file://')}")


def _build_page(folder: RunFolder, console: Console) -> None:
    """Write the report; a page that cannot be drawn does not undo a run."""
    from dapt_operator.report import ReportError, build_report

    try:
        build_report(folder.path)
    except ReportError as error:
        console.print(f"no report: {error}", markup=False, highlight=False, style="yellow")


def _why(folder: RunFolder, shown: Snapshot) -> str:
    condition = shown.stalled or shown.finished
    logs = f"(logs: {folder.path / 'logs'})"
    if condition is None:
        return f"{folder.name}: it ended without a word {logs}"
    return f"{folder.name}: {condition.message} {logs}"
