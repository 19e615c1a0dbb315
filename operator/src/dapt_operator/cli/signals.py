"""Turns Ctrl-C, SIGTERM and the end of the terminal into a flag that a loop checks, so that no write is cut."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Final, Self

from dapt_operator.cli.errors import EXIT_INTERRUPTED, EXIT_STOPPED

_EXIT_CODES: Final[Mapping[int, int]] = {
    signal.SIGINT: EXIT_INTERRUPTED,
    signal.SIGTERM: EXIT_STOPPED,
    signal.SIGHUP: EXIT_STOPPED,
}
_STANDARD_OUTPUTS: Final = (1, 2)


class StopFlag:
    """Counts signals while it is entered, and restores the earlier handlers on exit."""

    def __init__(self, on_second: Callable[[], object] | None = None) -> None:
        """Call `on_second` at the second signal: whoever sends one more does not want to wait for a checkpoint."""
        self._on_second = on_second
        self.received: list[int] = []
        self._earlier_handlers: dict[int, Any] = {}
        self._terminals: tuple[int, ...] = ()
        """Standard outputs that are a terminal; asked while it exists, since a closed one says that it is none."""

    @property
    def is_set(self) -> bool:
        """Whether a signal was received."""
        return bool(self.received)

    @property
    def exit_code(self) -> int:
        """Return the code of the first signal: 130 after Ctrl-C, 143 after SIGTERM and SIGHUP."""
        return _EXIT_CODES[self.received[0]] if self.received else EXIT_STOPPED

    def __enter__(self) -> Self:
        self._terminals = tuple(output for output in _STANDARD_OUTPUTS if os.isatty(output))
        for number in _EXIT_CODES:
            # Who started this command with nohup wants it to outlive the terminal.
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._earlier_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if number == signal.SIGHUP:
            # Both the kernel and the shell send it, and a service manager adds a SIGTERM: no sign of impatience.
            self._leave_terminals()
            return
        num_requests = sum(received != signal.SIGHUP for received in self.received)
        if num_requests == 2 and self._on_second is not None:
            self._on_second()

    def _leave_terminals(self) -> None:
        """Write to nowhere what would go to a terminal that is gone: each write would fail like one to a full disk."""
        null = os.open(os.devnull, os.O_WRONLY)
        for output in self._terminals:
            os.dup2(null, output)
        os.close(null)
