"""Defines the one exception for users' mistakes, shown as sentences without a traceback, and the exit codes."""

from __future__ import annotations

from collections.abc import Iterable

EXIT_PROBLEM = 1
"""User action is required on a manifest, a run or a file; the sentence on stderr says which."""
EXIT_USAGE = 2
"""The command or an option is unknown, or an option's value is wrong."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C; the same command continues the run."""
EXIT_STOPPED = 143
"""Stopped by SIGTERM, or by the end of the terminal; the same command continues the run."""


class UserError(Exception):
    """Reports a user's mistakes, each with its place and the next step.

    problems: one sentence each; all of them are shown.
    """

    def __init__(self, problems: str | Iterable[str], exit_code: int = EXIT_PROBLEM) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.exit_code = exit_code
        super().__init__("\n".join(self.problems))
