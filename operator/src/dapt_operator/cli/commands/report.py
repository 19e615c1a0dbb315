"""`dapt report`: the HTML page of a run, made again from its status and reports."""

from __future__ import annotations

from pathlib import Path

from dapt_operator.cli.errors import UserError
from dapt_operator.cli.run_folder import all_runs, find_run


def rebuild(name: str | None, runs: Path) -> Path:
    """Write the page of one run; its path.

    Raises:
        UserError: no such run, or there is nothing to draw yet.
    """
    if name is None:
        found = all_runs(runs)
        if len(found) != 1:
            names = ", ".join(run.name for run in found)
            raise UserError(
                f"{len(found)} runs in {runs}{f' ({names})' if names else ''}; name the one to report on"
            )
        name = str(found[0].path)
    run = find_run(name, runs)
    from dapt_operator.report import build_report

    build_report(run.path)
    return run.report
