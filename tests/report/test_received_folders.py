"""Tests run folders from elsewhere: whatever a file in one is, `dapt status` and `dapt report` end in one sentence."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dapt_operator.cli import main
from support.hostile_texts import assert_inert

if TYPE_CHECKING:
    from report.conftest import Run

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.timeout(120)]

STATUS = "status.yaml"
OBJECT = "objects/domainadaptation-quickstart.json"
BASELINE = "work/stages/baseline-a1/try-1/report.json"
PRETRAIN = "work/stages/pretrain-a1/try-1/report.json"
Mutation = Callable[[Path], None]


def holding(name: str, content: bytes | str) -> Mutation:
    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def replaced(name: str, make: Callable[[Path], Any]) -> Mutation:
    def change(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)

    return change


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 * 2**30)  # sparse: it takes no space on the disk


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # the path of a socket is at most 108 bytes long
        server.bind(path.name)


def edited(name: str, edit: Callable[[dict[str, Any]], Any]) -> Mutation:
    """Change the JSON of a file; of a report that is its report."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        edit(content["body"]["report"] if "body" in content else content)
        (folder / name).write_text(json.dumps(content))

    return change


def linked_picture_folder(folder: Path) -> None:
    (folder.parents[1] / "victim").mkdir()
    (folder / "report").symlink_to(folder.parents[1] / "victim")


def no_nats(value: float | str) -> Mutation:
    def edit(report: dict[str, Any]) -> None:
        for side in ("domain", "general"):
            for half in "ab":
                report["facts"]["measure"][side][half]["nll_nats"] = value

    return edited(BASELINE, edit)


ODD: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link out": lambda path: path.symlink_to("/etc/passwd"),
    "broken link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
    "socket": bound_socket,
    "endless": huge,
}
FILES = (STATUS, OBJECT, BASELINE, "invocations.json", ".lock")
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
FEW = ("deep JSON", "a list", "an infinite number", "no number")
"""Contents that are tried for the files of which little is read."""
MUTATIONS: dict[str, Mutation] = {
    **{f"{name} is a {kind}": replaced(name, make) for name in FILES for kind, make in ODD.items()},
    **{
        f"{name} holds {kind}": holding(name, content)
        for name in (STATUS, OBJECT, BASELINE, "invocations.json")
        for kind, content in {
            "nothing": b"",
            "zeros": b"\0" * 4096,
            "no UTF-8": b"\xff\xfe\x80",
            "deep JSON": b"[" * 100_000 + b"]" * 100_000,
            "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            "a list": b"[1, 2]",
            "a text": b'"text"',
            "null": b"null",
            "a long number": b"9" * 5000,
            "an infinite number": b'{"number": 1e999, "seconds": 1e999, "manifest": 7}',
            "no number": b'{"number": NaN, "seconds": NaN, "manifest": "\\u0000"}',
            "escapes": b'{"\x1b[2Jstatus": "\xe2\x80\xae"}',
        }.items()
        if name in (STATUS, BASELINE) or kind in FEW
    },
    "status is a list": holding(STATUS, "status: [1]\nmetadata: [2]\n"),
    "metadata is a text": holding(STATUS, "status: {}\nmetadata: text\n"),
    "status is bombed": holding(STATUS, BOMB),
    "status has a tag": holding(STATUS, "status: !!python/object/apply:os.system [id]\n"),
    "a time is none": holding(STATUS, "status: {stages: [{name: a, kind: prepare, startTime: yesterday}]}\n"),
    "a stage is unknown": holding(STATUS, "status: {stages: [{name: '\\e[2J', kind: \"\\e[31m\"}]}\n"),
    "the numbers are infinite": holding(
        STATUS, "status: {gain: .inf, forgetting: .nan, progress: {fraction: 0.5, etaSeconds: 1.0e+300}}\n"
    ),
    "a manifest of elsewhere": holding(
        "invocations.json", '{"number": 1, "seconds": 1, "manifest": "/dev/stdin"}'
    ),
    "a manifest with a long name": holding(
        "invocations.json", json.dumps({"number": 1, "seconds": 1, "manifest": "/" + "x" * 5000})
    ),
    "a number of a try is none": holding("work/stages/baseline-a1/try-x/report.json", "{}"),
    "a number of a try is long": holding(f"work/stages/baseline-a1/try-{'9' * 200}/report.json", "{}"),
    "a stage's number is long": holding(f"work/stages/baseline-a{'9' * 200}/try-1/report.json", "{}"),
    "a stage is a file": holding("work/stages/evaluate-a1", "x"),
    "a stage's name is odd": holding("work/stages/evaluate-a1-\x1b[2J\n/try-1/report.json", "{}"),
    "no loss": no_nats(0.0),
    "an infinite loss": no_nats("Infinity"),
    "no number as loss": no_nats("NaN"),
    "a huge negative loss": no_nats(-1e300),
    "a huge loss": no_nats(1e300),
    "odd scores": edited(
        BASELINE, lambda report: report["facts"]["measure"]["scores"][0].update(score=1e300, name="$\\frac{")
    ),
    "an odd curve": edited(
        PRETRAIN, lambda report: report["curve"][0].update(loss_nats="NaN", learning_rate=-1e300, step=0)
    ),
    "pictures lead elsewhere": linked_picture_folder,
    "the page is a folder": replaced("report.html", Path.mkdir),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_an_odd_file_in_a_run_folder_ends_in_one_sentence(
    finished: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    runs = tmp_path / "runs"
    finished.write(runs / "quickstart")
    finished.write(runs / "untouched")
    MUTATIONS[name](runs / "quickstart")
    capsys.readouterr()
    for arguments in (["status"], ["status", "quickstart"], ["report", "quickstart"]):
        try:
            main([*arguments, "--runs-dir", str(runs)])
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        assert_inert(out + err)
        assert code in (0, 1)
        assert "Traceback" not in out + err
        assert "root:" not in out + err, "no content of another file"
        assert len(err.splitlines()) == code, err
        if arguments == ["status"]:
            assert code == 0
            assert sum(line.startswith("untouched ") for line in out.splitlines()) == 1
    assert not list(tmp_path.glob("victim/*"))
