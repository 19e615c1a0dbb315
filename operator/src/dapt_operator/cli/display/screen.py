"""Where a run is shown: one live view in a terminal, a line for each change elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from dapt_contract.progress import Progress
from dapt_operator.cli.display.live_view import reading, render
from dapt_operator.cli.display.stage_rows import Snapshot, StageRow, stage_rows
from dapt_operator.number_format import clock, duration

PLAIN_WIDTH = 160


class Screen(Protocol):
    """Shows snapshots between enter and exit."""

    refresh_seconds: float
    """How often a new snapshot is worth showing."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, snapshot: Snapshot) -> None:
        """Show one moment."""
        ...

    def say(self, line: str) -> None:
        """Show a line that stays."""
        ...


class LiveScreen:
    """One view that is drawn anew."""

    refresh_seconds = 0.5

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Replace what is shown."""
        self._live.update(render(snapshot), refresh=True)

    def say(self, line: str) -> None:
        """Print above the view."""
        self._console.print(line, markup=False, highlight=False)


class PlainScreen:
    """Lines for logs and pipes; each is flushed."""

    refresh_seconds = 1.0

    def __init__(self) -> None:
        self._log = PlainLog()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def show(self, snapshot: Snapshot) -> None:
        """Print what is new."""
        for line in self._log.lines(snapshot):
            self.say(line)

    def say(self, line: str) -> None:
        """Print one line."""
        print(line, flush=True)


def make_console() -> Console:
    """stdout; wide enough for a table where it is not a terminal, since nobody knows the reader's width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def screen_for(console: Console) -> Screen:
    """A live view when the console is a terminal."""
    return LiveScreen(console) if console.is_terminal else PlainScreen()


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
