"""Turns Ctrl-C and SIGTERM into a flag that a loop checks between two steps, so that no write is cut in the middle."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from dapt_operator.cli.errors import EXIT_INTERRUPTED, EXIT_STOPPED


class StopFlag:
    """Counts signals while it is entered, and restores the earlier handlers on exit."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, on_second: Callable[[], object] | None = None) -> None:
        """Call `on_second` at the second signal: whoever sends one more does not want to wait for a checkpoint."""
        self._on_second = on_second
        self.received: list[int] = []
        self._earlier_handlers: dict[int, Any] = {}

    @property
    def is_set(self) -> bool:
        """Whether a signal was received."""
        return bool(self.received)

    @property
    def exit_code(self) -> int:
        """Return 130 after Ctrl-C, 143 after SIGTERM."""
        return EXIT_INTERRUPTED if self.received and self.received[0] == signal.SIGINT else EXIT_STOPPED

    def __enter__(self) -> Self:
        for number in self._SIGNALS:
            self._earlier_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 2 and self._on_second is not None:
            self._on_second()
