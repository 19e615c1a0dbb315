"""Defines why the operator does not start.

OperatorError
├── BadSettingError   an option cannot be used: change it, a retry does not help
└── PortTakenError    the port is in use: a retry helps once it is free
"""

from __future__ import annotations

from collections.abc import Sequence


class OperatorError(Exception):
    """Base of all errors that keep the operator from starting."""


class BadSettingError(OperatorError, ValueError):
    """A setting cannot be used; `problems` has one sentence for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


class PortTakenError(OperatorError, OSError):
    """The port cannot be bound. A retry helps once the other process is gone."""
