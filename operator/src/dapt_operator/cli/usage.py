"""Says in one sentence what is wrong with a command, an argument or an option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import typer
from pydantic import ValidationError

from dapt_operator.cli.errors import EXIT_PROBLEM, EXIT_USAGE, UserError
from dapt_operator.cli.terminal import write_note

_LIBRARYS_SUBJECT: Final = "Input should"


def run_app(app: typer.Typer, arguments: Sequence[str] | None, program: str) -> int:
    """Run a command line and return its exit code.

    Raises:
        UserError: the command, an argument or an option is wrong, or a command reports a user's mistake.
    """
    try:
        code = app(
            args=None if arguments is None else list(arguments), prog_name=program, standalone_mode=False
        )
    except typer.TyperException as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        text = error.format_message()
        if context is not None and text == context.get_help():  # no command at all
            write_note(text)
            return EXIT_USAGE
        raise UserError(_sentence(error, context, program), EXIT_USAGE) from None
    except typer.Abort:
        return EXIT_PROBLEM
    return code if isinstance(code, int) else 0


def _sentence(error: typer.TyperException, context: typer.Context | None, program: str) -> str:
    """Return `status: no such option: --nmae; ...`."""
    path = program if context is None else context.command_path
    command = path.removeprefix(program).strip()
    cause = error.__cause__
    text = _value_text(cause) if isinstance(cause, ValidationError) else None
    if text is None or context is None:
        text = error.format_message().rstrip(".")
        text = text[:1].lower() + text[1:]
    else:
        text = f"{_parameter(error, context)} {text}"
    end = "" if text.endswith("?") else ";"
    return f"{command + ': ' if command else ''}{text}{end} `{path} -h` says what is accepted"


def _value_text(cause: ValidationError) -> str | None:
    """Return what is wrong with a value, with the value; None where the library's words are of another kind."""
    found = cause.errors(include_url=False)[0]
    if not found["msg"].startswith(_LIBRARYS_SUBJECT):
        return None
    return f"{found['input']}: should{found['msg'].removeprefix(_LIBRARYS_SUBJECT).partition(',')[0]}"


def _parameter(error: typer.TyperException, context: typer.Context) -> str:
    parameter = getattr(error, "param", None)
    return str(parameter.opts[0]) if parameter is not None else context.command_path
