"""Where a run is shown: one live view in a terminal, a line for each change elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from dapt_operator.cli.plain import PlainLog
from dapt_operator.cli.snapshot import Snapshot
from dapt_operator.cli.view import render

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
