"""A wrong command line is answered with one sentence; shells complete what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_operator.cli import main

WRONG = {
    "foo": "no such command 'foo'; `dapt -h` says what is accepted",
    "status --namespce x": "status: no such option: --namespce (Possible options: --all-namespaces, --namespace);"
    " `dapt status -h` says what is accepted",
    "logs clinical --try two": "logs: --try two: should be a valid integer; `dapt logs -h` says what is accepted",
    "logs clinical --tail 0": "logs: --tail 0: should be greater than or equal to 1;"
    " `dapt logs -h` says what is accepted",
    "plan": "plan: missing argument 'MANIFEST'; `dapt plan -h` says what is accepted",
    "plan a.yaml b.yaml": "plan: got unexpected extra argument(s) (b.yaml); `dapt plan -h` says what is accepted",
    "report --out": "option '--out' requires an argument; `dapt -h` says what is accepted",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_answered_with_one_sentence(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    captured = capsys.readouterr()
    assert (end.value.code, captured.out, captured.err) == (2, "", f"dapt: {WRONG[line]}\n")


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("Usage: dapt [OPTIONS] COMMAND")


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "complete -o default -F _dapt_completion dapt"),
        ("zsh", "compdef _dapt_completion dapt"),
        ("fish", "complete --command dapt"),
    ],
)
def test_completion_is_shown_for_the_shell_that_asks(
    shell: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    with pytest.raises(SystemExit) as end:
        main(["--show-completion"])
    assert not end.value.code
    assert line in capsys.readouterr().out


def test_completion_is_installed_into_the_home_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        main(["--install-completion"])
    assert not end.value.code
    assert "bash completion installed" in capsys.readouterr().out
    script = tmp_path / ".bash_completions" / "dapt.sh"
    assert "_DAPT_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
