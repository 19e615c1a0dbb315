"""Tests that nothing that a pod, a tenant or a file's name says steers the terminal or counts as markup."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table
from rich.text import Text

from dapt_contract.pod.progress import Progress
from dapt_operator.api.v1alpha1.status import (
    AttemptStatus,
    CandidateStatus,
    Condition,
    DomainAdaptationStatus,
    StageStatus,
)
from dapt_operator.cli import main
from dapt_operator.cli.commands.status import reason_of_end
from dapt_operator.cli.display.live_view import render
from dapt_operator.cli.display.results import attempts_table, candidates_table
from dapt_operator.cli.display.screen import PlainScreen, make_console
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.terminal import write_line, write_problem
from support.hostile_texts import HOSTILE_TEXTS, assert_inert

NOW = "2026-01-31T12:00:00Z"
MARKUP = "[red]visible[/red] [link=http://evil.example]x[/link] [/] :smile:"


def snapshot(text: str) -> Snapshot:
    """A status with the text in every place that a view shows."""
    stages = (
        StageStatus(name="prepare", kind="prepare", state="Failed", run_key="a", message=text),
        StageStatus(name="pretrain", kind="pretrain", state="Running", run_key="b", start_time=NOW),
    )
    status = DomainAdaptationStatus(
        phase=text,
        stages=stages,
        conditions=(
            Condition(
                type="Stalled", status="True", reason="RetriesUsedUp", message=text, last_transition_time=NOW
            ),
        ),
        candidates=(CandidateStatus(id=text, passes=False, message=text),),
        attempts=tuple(AttemptStatus(number=number, ended_by=text, reason=text) for number in (1, 2)),
    )
    # A reading is JSON, which has no half of a surrogate pair.
    activity = text.encode(errors="replace").decode()
    reading = Progress(run_key="b", stage="pretrain", activity=activity, fraction=0.5)
    return Snapshot("quickstart", status, progress={"b": reading})


@pytest.mark.parametrize("text", [*HOSTILE_TEXTS, MARKUP])
def test_hostile_text_steers_no_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = snapshot(text)
    console = make_console()
    table = Table(text, title=text)
    table.add_row(text, Text(text))
    for renderable in (
        table,
        text,
        render(shown),
        candidates_table(shown.status),
        attempts_table(shown.status),
    ):
        assert renderable is not None
        console.print(renderable)
    PlainScreen().show(shown)
    write_line(text)
    write_line(reason_of_end(shown.status))
    write_problem(text)
    out, err = capsys.readouterr()
    for written in (out, err):
        assert_inert(written)
        assert "visible" in written


def test_markup_and_emoji_codes_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console()
    table = Table(MARKUP)
    table.add_row(MARKUP)
    console.print(table)
    console.print(MARKUP)
    assert capsys.readouterr().out.count(MARKUP) == 3


def test_a_terminal_gets_no_codes_but_those_of_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    for text in HOSTILE_TEXTS:
        make_console().print(Text(text, "red"))
    lines = out.getvalue()
    assert "\x1b[31m" in lines, "rich draws its own colour"
    assert_inert(lines.replace("\x1b[31m", "").replace("\x1b[0m", ""))


def test_a_hostile_argument_of_a_command_is_cleaned(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    for arguments in (["status", "\x1b[2J\u202evisible\udcff"], ["lint", "\x1b]0;visible\x07visible.yaml"]):
        with pytest.raises(SystemExit):
            main(arguments)
        error = capsys.readouterr().err
        assert_inert(error)
        assert "visible" in error


def test_a_locale_with_ascii_alone_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_line("größe → 3")
    assert raw.getvalue() == b"gr??e ? 3\n"
