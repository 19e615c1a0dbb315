"""Shows a run: one live view in a terminal, a line for each change elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment

from dapt_contract.pod.progress import Progress
from dapt_contract.untrusted.printable import printable_lines
from dapt_operator.cli.display.live_view import progress_and_forecast, render
from dapt_operator.cli.display.stage_rows import Snapshot, StageRow, stage_rows
from dapt_operator.cli.terminal import write_line
from dapt_operator.number_format import clock, duration

PLAIN_WIDTH = 160


class CleanConsole(Console):
    """A console on stdout that shows every text as it is: no markup in it counts, and nothing in it steers a terminal.

    Texts are cleaned in the segments that rich writes, after all of its own drawing.
    """

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, highlight=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, cleaned but for rich's own control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable_lines(segment.text))


class Screen(Protocol):
    """Shows snapshots between enter and exit."""

    refresh_seconds: float
    """Time between two snapshots."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, snapshot: Snapshot) -> None:
        """Show one snapshot."""
        ...

    def add_line(self, line: str) -> None:
        """Show a line that is not replaced."""
        ...


class LiveScreen:
    """Redraws one view in place."""

    refresh_seconds = 0.5

    def __init__(self, console: CleanConsole) -> None:
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
        """Replace the view."""
        self._live.update(render(snapshot), refresh=True)

    def add_line(self, line: str) -> None:
        """Print above the view."""
        self._console.print(line)


class PlainScreen:
    """Prints lines for logs and pipes, each flushed."""

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
        """Print what changed since the last snapshot."""
        for line in self._log.lines(snapshot):
            self.add_line(line)

    def add_line(self, line: str) -> None:
        """Print one line."""
        write_line(line)


def make_console() -> CleanConsole:
    """Return stdout, wide enough for a table where it is not a terminal: the reader's width is unknown there."""
    console = CleanConsole()
    return console if console.is_terminal else CleanConsole(width=PLAIN_WIDTH)


def screen_for(console: CleanConsole) -> Screen:
    """Return a live view for a terminal, else plain lines."""
    return LiveScreen(console) if console.is_terminal else PlainScreen()


_STATE_TEXTS = {
    "Waiting": "starting",
    "Running": "running",
    "Succeeded": "done",
    "Suspended": "suspended",
}
STEPS_BETWEEN_LINES_FRACTION = 0.05
"""Share of a stage's work between two lines about its progress."""
SECONDS_BETWEEN_LINES = 10.0
"""Longest time without a line while a stage runs, at first."""
TIME_BETWEEN_LINES_FRACTION = 0.01
"""The same as a share of the time so far: a run of days does not fill its log with lines that say nothing new."""


class PlainLog:
    """Remembers what was printed, so that each change is printed once."""

    def __init__(self) -> None:
        self._rows: dict[str, StageRow] = {}
        self._printed: dict[str, Progress] = {}
        self._printed_at_seconds = 0.0

    def lines(self, snapshot: Snapshot) -> list[str]:
        """Return what is new since the last call, the stages that ended first: those that start follow from them.

        When nothing was new for a while, return how far the running stages are.
        """
        endings: list[str] = []
        changes: list[str] = []
        running: list[str] = []
        for row in stage_rows(snapshot):
            before = self._rows.get(row.title)
            self._rows[row.title] = row
            # `dapt run` prints each failure itself: the status keeps only the newest run of a stage.
            if row.state in ("Pending", "Failed"):
                continue
            if before is None or before.state != row.state:
                (endings if row.state == "Succeeded" else changes).append(_change(row))
            if row.state in ("Waiting", "Running"):
                running.append(_progress(row))
            if row.progress is not None and self._is_news(row.title, row.progress):
                self._printed[row.title] = row.progress
                changes.append(_progress(row))
        seconds = snapshot.elapsed_seconds or 0.0
        lines = [*endings, *changes]
        if not lines and seconds - self._printed_at_seconds >= max(
            SECONDS_BETWEEN_LINES, TIME_BETWEEN_LINES_FRACTION * seconds
        ):
            lines = running
        if lines:
            self._printed_at_seconds = seconds
        return [f"[{clock(seconds)}] {line}" for line in lines]

    def _is_news(self, title: str, progress: Progress) -> bool:
        printed = self._printed.get(title)
        if printed is None:
            return bool(progress.activity or progress.step)
        return (
            progress.activity != printed.activity
            or progress.domain_perplexity != printed.domain_perplexity
            or progress.general_perplexity != printed.general_perplexity
            or progress.fraction - printed.fraction >= STEPS_BETWEEN_LINES_FRACTION
        )


def _progress(row: StageRow) -> str:
    if row.progress is None:
        return _change(row)
    return f"{row.title}: {100 * row.progress.fraction:.0f} % · {progress_and_forecast(row)}"


def _change(row: StageRow) -> str:
    line = f"{row.title}: {_STATE_TEXTS[row.state]}"
    if row.state == "Succeeded" and row.seconds is not None:
        line += f" in {duration(row.seconds)}"
    return line + (f": {row.note}" if row.note and row.state != "Running" else "")
