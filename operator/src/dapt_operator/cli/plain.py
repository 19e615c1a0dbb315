"""The view of `dapt run` where stdout is not a terminal: one line for each change, with the time elapsed."""

from __future__ import annotations

from dapt_contract.progress import Progress
from dapt_operator.cli.snapshot import Snapshot, StageRow, stage_rows
from dapt_operator.cli.view import reading
from dapt_operator.cli.words import clock, duration

_WORDS = {
    "Waiting": "starting",
    "Running": "running",
    "Succeeded": "done",
    "Suspended": "suspended",
}
STEPS_BETWEEN_LINES_FRACTION = 0.05
"""A training stage gets a line at least this share of its work after the line before."""


class PlainLog:
    """Remembers what was said, so that each change is said once."""

    def __init__(self) -> None:
        self._rows: dict[str, StageRow] = {}
        self._said: dict[str, Progress] = {}

    def lines(self, snapshot: Snapshot) -> list[str]:
        """What is new since the last call."""
        found: list[str] = []
        for row in stage_rows(snapshot):
            before = self._rows.get(row.title)
            self._rows[row.title] = row
            if row.state in (
                "Pending",
                "Failed",
            ):  # a failure is said by the run itself, whichever try it was
                continue
            if before is None or before.state != row.state:
                found.append(_change(row))
            if row.progress is not None and self._is_news(row.title, row.progress):
                self._said[row.title] = row.progress
                found.append(f"{row.title}: {100 * row.progress.fraction:.0f} % · {reading(row.progress)}")
        stamp = clock(snapshot.elapsed_seconds or 0.0)
        return [f"[{stamp}] {line}" for line in found]

    def _is_news(self, title: str, progress: Progress) -> bool:
        said = self._said.get(title)
        if said is None:
            return bool(progress.activity or progress.step)
        return (
            progress.activity != said.activity
            or progress.domain_perplexity != said.domain_perplexity
            or progress.general_perplexity != said.general_perplexity
            or progress.fraction - said.fraction >= STEPS_BETWEEN_LINES_FRACTION
        )


def _change(row: StageRow) -> str:
    line = f"{row.title}: {_WORDS[row.state]}"
    if row.state == "Succeeded" and row.seconds is not None:
        line += f" in {duration(row.seconds)}"
    return line + (f": {row.note}" if row.note and row.state != "Running" else "")
