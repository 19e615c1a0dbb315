"""Text leaves in few places, each of which cleans it: no other module prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITERS = {
    "dapt_operator/cli/terminal.py",
    "dapt_operator/cli/display/screen.py",
    "dapt_operator/runtime/logging_setup.py",
    "dapt_trainer/pod/log_lines.py",
    # Each answers its own parent process.
    "dapt_trainer/data/harness/snapshot.py",
    "dapt_trainer/data/base_model/complete.py",
    "dapt_trainer/data/base_model/tokenizer_trial.py",
    "dapt_trainer/data/chat/render_process.py",
}
OUTPUT = {
    "print", "echo", "secho", "Console", "print_exception", "print_exc", "StreamHandler", "basicConfig",
    "sys.stdout.write", "sys.stderr.write",
}  # fmt: skip
"""Functions and classes that write, by the last part of their name or by the whole of it."""
OF_CONSOLES = {"console.print", "self._console.print", "make_console().print"}
"""Calls on a console that `screen.make_console` made, which cleans."""


def writing_calls(tree: ast.AST) -> Iterator[str]:
    """Yield what is called to write."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if (name in OUTPUT or name.rpartition(".")[2] in OUTPUT) and name not in OF_CONSOLES:
                yield name


def test_writing_calls_are_found() -> None:
    source = "print(1)\ntyper.echo(2)\nConsole()\nconsole.print(3)\nsys.stderr.write(4)\nreprint(5)\n"
    assert sorted(writing_calls(ast.parse(source))) == ["Console", "print", "sys.stderr.write", "typer.echo"]


def test_no_other_module_writes() -> None:
    written = {}
    for folder in (ROOT / "operator" / "src", ROOT / "trainer-image" / "src"):
        for path in folder.rglob("*.py"):
            calls = list(writing_calls(ast.parse(path.read_text())))
            if calls and str(path.relative_to(folder)) not in WRITERS:
                written[str(path.relative_to(folder))] = calls
    assert written == {}
