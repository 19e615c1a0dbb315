"""Defines the one exception for users' mistakes, and those of its kind that a program may want to tell apart."""

from __future__ import annotations

from collections.abc import Iterable

from dapt_contract.untrusted.printable import printable_lines

EXIT_PROBLEM = 1
"""User action is required on a manifest, a run or a file; the sentence on stderr says which."""


class UserError(Exception):
    """Reports a user's mistakes, each with its place and the next step.

    problems: one sentence each; all of them are shown.
    exit_code: with which the command line ends.
    """

    def __init__(self, problems: str | Iterable[str], exit_code: int = EXIT_PROBLEM) -> None:
        # Cleaned here, since a notebook or a log of the caller's shows them: they quote what others have written.
        self.problems = tuple(
            printable_lines(problem) for problem in ((problems,) if isinstance(problems, str) else problems)
        )
        self.exit_code = exit_code
        super().__init__("\n".join(self.problems))


class NoAnswerError(UserError):
    """The cluster cannot be asked: no answer, or the user may not. It says nothing about what was asked for."""


class NotPublishedError(UserError):
    """An adaptation that is waited for ended without a published model, or requires user action."""


class WaitTimeoutError(UserError):
    """An adaptation has not ended in the time that its caller waits. It continues."""
