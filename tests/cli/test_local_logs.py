"""`dapt logs` of a local run reads the files in its folder, also of runs that failed and were repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_operator.api.names import object_name
from dapt_operator.cli import main

FAILED, NEWER = "a" * 64, "b" * 64


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose pretraining failed once and runs again, in two processes."""
    folder = tmp_path / "runs" / "clinical"
    (folder / "logs").mkdir(parents=True)
    common = {"name": "pretrain", "kind": "pretrain", "attempt": 1}
    stages = [
        common | {"try": 1, "state": "Failed", "runKey": FAILED},
        common | {"try": 2, "state": "Running", "runKey": NEWER},
    ]
    with (folder / "status.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(
            {"metadata": {"name": "clinical"}, "status": {"stages": stages}}, file
        )
    for key in (FAILED, NEWER):
        for rank in (0, 1):
            name = object_name("clinical", "pretrain", key)
            (folder / "logs" / f"{name}-{rank}.log").write_text(f"first\n{key[0]} of {rank}\n")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def logs(*arguments: str) -> tuple[list[str], list[str]]:
        with pytest.raises(SystemExit):
            main(["logs", "clinical", *arguments])
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err.splitlines()

    return logs


def test_the_newest_run_is_shown_with_its_ranks(run: Path, call: Any) -> None:
    assert call("--tail", "1") == (["[rank 0] b of 0", "[rank 1] b of 1"], [])


def test_an_earlier_run_that_failed_is_still_there(run: Path, call: Any) -> None:
    assert call("--local", "--try", "1", "--rank", "1") == (["first", "a of 1"], [])


def test_what_does_not_exist_is_answered_with_what_does(run: Path, call: Any) -> None:
    assert call("--stage", "publish")[1] == [
        "dapt: runs/clinical: no log fits; stages that were started: pretrain; leave out an option, or correct it"
    ]
    assert call("--follow", "--rank", "0")[1][0].startswith(
        "dapt: --follow is for a cluster; here run: tail -f runs/"
    )


def test_a_link_in_the_place_of_a_log_is_not_read(run: Path, call: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    log = run / "logs" / f"{object_name('clinical', 'pretrain', NEWER)}-0.log"
    log.unlink()
    log.symlink_to(tmp_path / "secret")
    lines, errors = call("--rank", "0")
    assert lines == []
    assert "cannot be read" in errors[0]


def test_a_linked_folder_of_logs_is_not_read(run: Path, call: Any, tmp_path: Path) -> None:
    (run / "logs").rename(tmp_path / "elsewhere")
    (run / "logs").symlink_to(tmp_path / "elsewhere")
    lines, errors = call("--rank", "0")
    assert lines == []
    assert "cannot be read" in errors[0]


def test_a_name_that_no_folder_can_have_is_that_of_no_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["logs", "." * 300, "--local"])
    assert capsys.readouterr().err.startswith("dapt: no run '....")
