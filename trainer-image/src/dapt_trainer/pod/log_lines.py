"""Writes the log of a pod: names of files and messages of libraries in it steer no terminal that shows the log."""

from __future__ import annotations

import logging
import sys
import traceback

from dapt_contract.untrusted.printable import printable, printable_lines


class CleanFormatter(logging.Formatter):
    """Formats records so that each is one line, but for a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line of a record."""
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with its traceback."""
        return printable_lines(super().format(record))


def set_up_log() -> None:
    """Send the records of our own modules and of libraries to stdout."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(CleanFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def write_line(text: str) -> None:
    """Write a line for the people who read the log, at once."""
    print(f"dapt: {printable_lines(text)}", flush=True)


def write_traceback(error: BaseException) -> None:
    """Write the traceback of an error that nobody expected."""
    print(printable_lines("".join(traceback.format_exception(error))), end="", flush=True)
