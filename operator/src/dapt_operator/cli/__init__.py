"""Provides the command line `dapt`: thin commands over the planner, launchers and reconcile that a cluster uses too.

Nothing heavy is imported before a command needs it, so that `dapt --help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import Final

from dapt_operator.cli.errors import UserError
from dapt_operator.cli.terminal import write_problem

GARBAGE_THRESHOLD: Final = 1_000_000
"""New objects before the collector looks for garbage. Imports make hundreds of thousands of objects that all stay, and
with Python's own 700 the collector takes a tenth of the time of a short command."""


def main_of_kubectl() -> None:
    """Run the command line as `kubectl dapt`, which kubectl starts as the program `kubectl-dapt`."""
    main(program="kubectl dapt")


def main(arguments: Sequence[str] | None = None, program: str = "dapt") -> None:
    """Run the command line and exit; a user's mistake is sentences on stderr, never a traceback."""
    # pydantic would look for plugins in the metadata of every installed package before it builds the first model.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    gc.set_threshold(GARBAGE_THRESHOLD)
    # An interpreter that ends looks once more at all objects, for a fifth of the time of a short command.
    atexit.register(gc.freeze)

    from dapt_operator.cli.app import app
    from dapt_operator.cli.usage import run_app

    try:
        sys.exit(run_app(app, arguments, program))
    except UserError as error:
        for problem in error.problems:
            write_problem(problem)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `dapt plan ... | head`
        sys.stderr.close()
        sys.exit(141)


__all__ = ["main", "main_of_kubectl"]
