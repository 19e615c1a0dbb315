"""`dapt logs` of a local run: the output of every run of every stage is kept in its folder, of failed ones too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dapt_contract.untrusted.regular_files import read_regular_below
from dapt_operator.api.names import object_name
from dapt_operator.api.v1alpha1.status import StageStatus
from dapt_operator.cli.commands.cluster.logs import LogQuery
from dapt_operator.cli.display.stage_rows import stage_title
from dapt_operator.cli.errors import EXIT_USAGE, UserError
from dapt_operator.cli.run_folder import RunFolder, explained

LOGS_FOLDER: Final = "logs"
_MAX_LOG_BYTES: Final = 64 * 1024 * 1024


def local_log_lines(run: RunFolder, query: LogQuery) -> Iterator[str]:
    """Yield the lines of the newest run of a stage that fits; with several processes each line begins with its rank.

    Raises:
        UserError: nothing fits, or a file cannot be read.
    """
    with explained(run.path):
        stages = run.status().stages
        fitting = [
            stage for stage in stages if query.fits_stage(stage) and _log_files(run, stage, query.rank)
        ]
    if not fitting:
        known = ", ".join(dict.fromkeys(stage.kind for stage in stages)) or "none"
        raise UserError(
            f"{run.path}: no log fits; stages that were started: {known}; leave out an option, or correct it"
        )
    files = _log_files(run, fitting[-1], query.rank)
    if query.follow:
        raise UserError(
            f"--follow is for a cluster; here run: tail -f {' '.join(map(str, files.values()))}", EXIT_USAGE
        )
    for rank, path in files.items():
        prefix = f"[rank {rank}] " if len(files) > 1 else ""
        lines = _lines(run, path, stage_title(fitting[-1]))
        yield from (f"{prefix}{line}" for line in (lines if query.tail is None else lines[-query.tail :]))


def _log_files(run: RunFolder, stage: StageStatus, rank: int | None) -> dict[int, Path]:
    """Return the files of a run of a stage by the rank of the node, in its order."""
    if stage.run_key is None:
        return {}
    name = object_name(run.name, stage.name, stage.run_key)
    pattern = re.compile(re.escape(name) + r"-(\d{1,6})\.log")
    # By their names and not by a path that the status leads to: the folder may be somebody else's.
    found = {
        int(match[1]): path
        for path in (run.path / LOGS_FOLDER).glob("*.log")
        if (match := pattern.fullmatch(path.name)) and rank in (None, int(match[1]))
    }
    return dict(sorted(found.items()))


def _lines(run: RunFolder, path: Path, title: str) -> list[str]:
    try:
        # The folder of logs may be a link too, which leads out of a run that was sent.
        return (
            read_regular_below(run.path, f"{LOGS_FOLDER}/{path.name}", _MAX_LOG_BYTES)
            .decode(errors="replace")
            .splitlines()
        )
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{path}: the log of {title} cannot be read ({reason})") from None
