"""Names the exit codes, and the one exception for users' mistakes, shown as sentences without a traceback."""

from __future__ import annotations

from dapt_client.errors import EXIT_PROBLEM, UserError

__all__ = ["EXIT_INTERRUPTED", "EXIT_PROBLEM", "EXIT_STOPPED", "EXIT_USAGE", "UserError"]

EXIT_USAGE = 2
"""The command or an option is unknown, or an option's value is wrong."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C; the same command continues the run."""
EXIT_STOPPED = 143
"""Stopped by SIGTERM, or by the end of the terminal; the same command continues the run."""
