"""`dapt report` writes the HTML page of a run again, from its status and reports."""

from __future__ import annotations

from pathlib import Path

from dapt_operator.cli.errors import UserError
from dapt_operator.cli.run_folder import all_runs, explained, find_run, no_run_text


def rebuild(name: str | None, runs: Path) -> Path:
    """Write the page of one run and return its path.

    Raises:
        UserError: there is no such run, or nothing to draw yet, or a file of it cannot be read.
    """
    if name is None:
        candidates = all_runs(runs)
        if not candidates:
            raise UserError(no_run_text(runs))
        if len(candidates) > 1:
            names = ", ".join(run.name for run in candidates)
            raise UserError(f"{len(candidates)} runs in {runs} ({names}); name the one to report on")
        name = str(candidates[0].path)
    run = find_run(name, runs)
    from dapt_operator.report import ReportError, build_report

    with explained(run.path):
        try:
            build_report(run.path, is_stopped=not run.is_in_use)
        except ReportError as error:
            raise UserError(str(error)) from None
    return run.report
