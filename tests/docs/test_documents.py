"""The documents agree with the code: commands parse, links have targets, lists are complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_operator.api.v1alpha1.conditions import STALLING
from dapt_operator.api.validation.unsupported import ADAPTATION, PROFILE
from dapt_operator.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.is_file() and "decisions" not in path.parts
]


def commands(text: str) -> list[str]:
    """Every `dapt ...` in code, blocks and spans alike, without comments."""
    blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    found = [line.removeprefix("$ ") for line in [*lines, *spans]]
    return [line for line in found if re.match(r"dapt( |$)", line)]


QUOTED = sorted(
    {(path.relative_to(ROOT).as_posix(), line) for path in DOCUMENTS for line in commands(path.read_text())}
)


@pytest.mark.parametrize(("document", "line"), QUOTED, ids=[f"{path}: {line}" for path, line in QUOTED])
def test_every_quoted_command_parses(document: str, line: str) -> None:
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(line)[1:] or ["--help"]
    if name.startswith("-"):
        return
    command = group.commands.get(name)  # type: ignore[attr-defined]
    assert command is not None, f"{document}: dapt has no command {name!r}"
    if arguments or line.count(" ") > 1:  # `dapt run` alone names the command
        command.make_context(name, arguments)


def test_the_documents_quote_every_command() -> None:
    quoted = {line.split()[1] for _, line in QUOTED if " " in line}
    assert set(typer.main.get_command(app).commands) <= quoted  # type: ignore[attr-defined]


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_has_a_target(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path) if path else document
        assert found.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_named_in_code_exists(document: Path) -> None:
    for name in re.findall(r"`((?:docs|examples|tests|crds|bench)/[\w./-]*)`", document.read_text()):
        assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_every_unsupported_field_is_listed() -> None:
    section = (ROOT / "docs" / "concepts.md").read_text().split("## Not supported yet")[1]
    listed = set(re.findall(r"`(spec\.[\w.]+)`", section))
    assert listed == {entry.field for entry in (*ADAPTATION, *PROFILE)}


def test_every_exit_code_and_cause_is_explained() -> None:
    table = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)} == set(ExitCode)
    unnamed = {cause.value for cause in Cause} - set(re.findall(r"`(\w+)`", table))
    assert unnamed == {"Deadline"}  # explained in the order of precedence


def test_every_reason_to_stall_has_a_remedy() -> None:
    section = (ROOT / "docs" / "troubleshooting.md").read_text().split("## A run stalls")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == set(STALLING)


def test_every_exit_code_of_run_is_listed() -> None:
    text = (ROOT / "docs" / "running-locally.md").read_text()
    assert re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE) == ["0", "1", "2", "130", "143"]
