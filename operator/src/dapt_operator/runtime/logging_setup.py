"""Configures the operator's log: one line for each entry, JSON or text, of our code and of the libraries."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from dapt_contract.untrusted.printable import printable_lines, printable_values
from dapt_operator.runtime.settings import LogFormat, LogLevel

REPEAT_SECONDS: Final = 60.0


class OncePerOutage(logging.Filter):
    """Passes one line a minute of kopf's lines about failed requests that are repeated.

    Each watch writes one at each attempt, so an API server that is unreachable for a minute would fill pages.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if not str(record.msg).startswith("Request attempt "):
            return True
        now = self._clock()
        if now - self._last < REPEAT_SECONDS:
            return False
        self._last = now
        return True


_TEXT_LINES: Final = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
_TRACEBACK_FIELDS: Final = ("exception", "stack")


def _clean(_logger: object, _name: str, entry: EventDict) -> EventDict:
    """Clean every text of an entry: messages of pods, of the API server and of libraries steer no terminal."""
    return {
        name: printable_lines(value)
        if name in _TRACEBACK_FIELDS and isinstance(value, str)
        # What it is a tuple of is drawn by the renderer.
        else value
        if name == "exc_info"
        else printable_values(value)
        for name, value in entry.items()
    }


def _text_line(logger: WrappedLogger, name: str, entry: EventDict) -> str:
    """Return an entry as text. What follows its first line is indented: it is no entry of its own."""
    return printable_lines(str(_TEXT_LINES(logger, name, entry))).replace("\n", "\n    ")


def set_up(format_: LogFormat, level: LogLevel) -> None:
    """Send all lines to standard error: our own from `level` on, those of libraries from WARNING on."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: Processor = structlog.processors.JSONRenderer() if format_ == "json" else _text_line
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if format_ == "json":
        # For JSON alone: the console renderer draws tracebacks itself, and structlog warns where it gets their text.
        final.append(structlog.processors.format_exc_info)
    final.append(_clean)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*final, renderer])
    )
    handler.addFilter(OncePerOutage())
    root = logging.getLogger()
    # In place of any that are installed already: each of them would write the line once more.
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in ("dapt", "dapt_operator"):
        logging.getLogger(ours).setLevel(level.upper())
    # urllib3 writes a line for each retry, which our own code reports too. kopf writes that it handles no signals in
    # its thread, which is intended.
    for noisy in ("urllib3.connectionpool", "kopf._core.reactor.running"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
