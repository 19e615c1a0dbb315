"""What a user can get wrong at the command line. One exception, shown as sentences without a traceback."""

from __future__ import annotations

from collections.abc import Iterable

EXIT_PROBLEM = 1
"""A manifest, a run or a file needs a person; the sentence on stderr says what for."""
EXIT_USAGE = 2
"""Unknown command or option, as with any command line."""
EXIT_INTERRUPTED = 130
"""Ctrl-C; the run can be continued."""
EXIT_STOPPED = 143
"""SIGTERM; the run can be continued."""


class UserError(Exception):
    """A mistake with its place and the next step.

    problems: one sentence each; all of them are shown.
    """

    def __init__(self, problems: str | Iterable[str], exit_code: int = EXIT_PROBLEM) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.exit_code = exit_code
        super().__init__("\n".join(self.problems))
