"""Writes the plain lines of every command: with the console of `display.screen`, the only place where text leaves.

Names, messages of pods and files of a run come from others; whatever they hold, what is written steers no terminal.
"""

from __future__ import annotations

import sys
from typing import TextIO

from dapt_contract.untrusted.printable import printable_lines


def write_line(line: str) -> None:
    """Write a line to stdout at once."""
    _write(line, sys.stdout)


def write_problem(problem: str) -> None:
    """Write a sentence about a user's mistake to stderr."""
    _write(f"dapt: {problem}", sys.stderr)


def write_note(text: str) -> None:
    """Write text that is not a command's result to stderr."""
    _write(text, sys.stderr)


def _write(line: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    # A locale that has ASCII alone is no reason to fail.
    print(printable_lines(line).encode(encoding, "replace").decode(encoding), file=stream, flush=True)
