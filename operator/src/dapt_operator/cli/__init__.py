"""Provides the command line `dapt`: thin commands over the planner, launchers and reconcile that a cluster uses too.

Nothing heavy is imported before a command needs it, so that `dapt --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dapt_operator.cli.errors import UserError
from dapt_operator.cli.terminal import write_problem


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; a user's mistake is sentences on stderr, never a traceback."""
    # pydantic would look for plugins in the metadata of every installed package before it builds the first model.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

    from dapt_operator.cli.app import app

    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="dapt")
    except UserError as error:
        for problem in error.problems:
            write_problem(problem)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `dapt plan ... | head`
        sys.stderr.close()
        sys.exit(141)


__all__ = ["main"]
