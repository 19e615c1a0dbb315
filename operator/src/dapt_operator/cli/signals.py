"""Ctrl-C and SIGTERM as a flag that a loop looks at, so that nothing is torn in the middle."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from dapt_operator.cli.errors import EXIT_INTERRUPTED, EXIT_STOPPED


class StopFlag:
    """Counts signals while it is entered; the handlers before it come back afterwards."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, on_second: Callable[[], object] | None = None) -> None:
        """`on_second` is called when a second signal comes: who sends it does not want to wait."""
        self._on_second = on_second
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    @property
    def wanted(self) -> bool:
        """Whether a signal came."""
        return bool(self.received)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM."""
        return EXIT_INTERRUPTED if self.received and self.received[0] == signal.SIGINT else EXIT_STOPPED

    def __enter__(self) -> Self:
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 2 and self._on_second is not None:
            self._on_second()
