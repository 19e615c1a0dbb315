"""Tests folders of runs: what status, report and run print before anything is started."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dapt_operator.cli import main
from dapt_operator.cli.run_folder import RunFolder
from support.model_headers import write_model

MANIFEST = """\
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: tiny}
spec:
  model: {source: "file://base"}
  corpus:
    domain: [{source: "file://domain.jsonl"}]
    general: [{source: "file://general.jsonl"}]
    sequenceLength: 64
  pretraining: {globalBatchSize: 3}
  output: {destination: "file://out"}
  resources: {nodes: 2, gpusPerNode: 1}
"""
STAGES = [
    {"name": "prepare", "kind": "prepare", "state": "Succeeded", "message": "all read"},
    {"name": "pretrain", "kind": "pretrain", "state": "Running", "startTime": "2026-01-31T12:00:00Z"},
]
CANDIDATES = [
    {
        "id": "a1-s12",
        "domainPerplexity": 9.0,
        "generalPerplexity": 21.0,
        "forgetting": 0.2,
        "domainPerplexityDecrease": 0.1,
        "gain": 0.105,
        "passes": False,
        "message": "over the limit",
    },
    {
        "id": "a1-s24",
        "domainPerplexity": 8.0,
        "generalPerplexity": 18.0,
        "forgetting": 0.02,
        "domainPerplexityDecrease": 0.2,
        "gain": 0.223,
        "passes": True,
    },
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], list[str]]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    code = end.value.code
    assert code is None or isinstance(code, int)
    lines = [line.rstrip() for line in captured.out.splitlines()]
    return code or 0, lines, captured.err.splitlines()


def write_status(folder: Path, **status: object) -> None:
    run = folder / "runs" / "tiny"
    run.mkdir(parents=True)
    stored = {"metadata": {"name": "tiny"}, "status": {"phase": "Pretraining", "stages": STAGES} | status}
    with (run / "status.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(stored, file)


def condition(type_: str, reason: str, message: str) -> dict[str, str]:
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }


def test_status_and_report_without_runs_explain_how_to_start_one(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert call(capsys, "status") == (
        1,
        [],
        ["dapt: no run in runs; start one with `dapt run MANIFEST`, or give --runs-dir"],
    )
    assert call(capsys, "report") == call(capsys, "status")


def test_an_unknown_run_is_answered_with_those_that_are_there(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert call(capsys, "status", "other")[2] == [
        "dapt: no run 'other'; there is no run in runs; name one, give its folder, or --runs-dir"
    ]
    write_status(folder)
    assert call(capsys, "status", "other")[2] == [
        "dapt: no run 'other'; there are: tiny; name one, give its folder, or --runs-dir"
    ]


def test_all_runs_in_one_table(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    write_status(
        folder,
        progress={"fraction": 0.41},
        forgetting=0.021,
        gain=0.18,
        selected={"id": "a1-s24", "reason": "largest gain"},
    )
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "status.yaml").write_text("status: [")
    code, lines, _ = call(capsys, "status")
    assert code == 0
    assert lines[0].split() == ["NAME", "PHASE", "PROGRESS", "FORGETTING", "GAIN", "SELECTED"]
    assert lines[1].startswith("broken  runs/broken/status.yaml: cannot be read (")
    assert lines[-1].split() == [
        "tiny",
        "Pretraining",
        "(stopped)",
        "41",
        "%",
        "+2.1",
        "%",
        "0.180",
        "a1-s24",
    ]


def test_status_of_an_interrupted_run_explains_how_to_continue(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write_status(folder)
    assert call(capsys, "status", "tiny")[1] == [
        "tiny  Pretraining",
        "✓  prepare     all read",
        "‖  pretrain",
        "",
        "not running now; `dapt run` with its manifest continues it",
    ]


def test_status_of_a_pretraining_shows_how_far_it_is(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    reading = {"fraction": 0.35, "step": 8, "totalSteps": 23, "tokensPerSecond": 80.2, "etaSeconds": 165.0}
    running = {"name": "pretrain", "kind": "pretrain", "state": "Running", "runKey": "k"}
    write_status(folder, progress=reading, stages=[STAGES[0], running])
    assert call(capsys, "status", "tiny")[1][2].split() == ["‖", "pretrain", "step", "8", "of", "23"]
    with (folder / "runs" / "tiny" / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = call(capsys, "status", "tiny")[1][2]
        phase = call(capsys, "status")[1][-1].split()[1:3]
    assert line == "▶  pretrain    ███████░░░░░░░░░░░░░  35 %  step 8/23 · 80 tokens/s · 2 min 45 s left"
    assert phase == ["Pretraining", "35"]


def test_a_stalled_run_shows_its_candidates_and_why(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    write_status(
        folder,
        phase="Stalled",
        candidates=CANDIDATES,
        conditions=[condition("Stalled", "GatesBreached", "no candidate passes the gates: more replay")],
    )
    assert call(capsys, "status", "runs/tiny")[1][4:] == [
        "GatesBreached: no candidate passes the gates: more replay",
        "",
        "candidate  domain perplexity  general perplexity  forgetting   gain  gates",
        "a1-s12        9.00 (-10.0 %)               21.00     +20.0 %  0.105  over the limit",
        "a1-s24        8.00 (-20.0 %)               18.00      +2.0 %  0.223  pass",
    ]


def test_whether_a_run_is_in_use_is_seen_from_its_lock(folder: Path) -> None:
    write_status(folder)
    run = RunFolder(folder / "runs" / "tiny")
    assert not run.is_in_use
    with (run.path / ".lock").open("w") as file:
        assert not run.is_in_use
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run.is_in_use


def test_a_run_names_all_that_is_missing_before_it_starts(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "m.yaml").write_text(MANIFEST)
    (folder / "general.jsonl").touch()
    code, out, errors = call(capsys, "run", "m.yaml")
    assert (code, out) == (1, [])
    assert errors == [
        f"dapt: m.yaml: spec.model.source (line 5): {folder}/base: no such model; give a folder with config.json and"
        " safetensors, or one .gguf file",
        f"dapt: m.yaml: spec.corpus.domain[0].source (line 7): no file matches file://{folder}/domain.jsonl; check the"
        " path, which starts at the manifest's folder",
        f"dapt: m.yaml: spec.corpus.general[0].source (line 8): file://{folder}/general.jsonl is empty; fill it, or"
        " remove the source",
        "dapt: m.yaml: spec.pretraining.globalBatchSize is 3, which cannot be divided by 2 (2 nodes x 1 process):"
        " write 2 or 4",
    ]
    assert not (folder / "runs").exists()


def valid(folder: Path) -> Path:
    """A manifest whose inputs are there, as far as headers and sizes tell."""
    write_model(folder / "base")
    for name in ("domain.jsonl", "general.jsonl"):
        (folder / name).write_text('{"text": "something"}\n')
    path = folder / "m.yaml"
    path.write_text(MANIFEST.replace("globalBatchSize: 3", "globalBatchSize: 4"))
    return path


def test_fresh_leaves_alone_what_is_not_a_run_or_is_in_use(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    valid(folder)
    mine = folder / "runs" / "tiny"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    assert call(capsys, "run", "m.yaml", "--fresh")[2] == [
        "dapt: runs/tiny: not the folder of a run, so --fresh does not remove it; give another --runs-dir"
    ]
    (mine / "status.yaml").write_text("status: {}")
    with (mine / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert call(capsys, "run", "m.yaml", "--fresh")[2] == [
            "dapt: runs/tiny: a dapt run is using it, so --fresh does not remove it; stop that one first"
        ]
    assert (mine / "thesis.txt").is_file()


def test_a_path_that_reads_as_two_addresses_is_refused_where_it_matters(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    manifest = valid(folder)
    with_task = "  evaluation: {general: {tasks: [{name: arc_easy}]}}\n"
    manifest.write_text(manifest.read_text() + with_task)
    runs = folder / "a::b"
    assert call(capsys, "run", "m.yaml", "--runs-dir", "a::b")[2] == [
        f"dapt: {runs / 'tiny'}: has '::' in its path, in which the data of task arc_easy cannot be stored; give a"
        " --runs-dir without it"
    ]
    assert not runs.exists()


def test_a_folder_in_use_is_left_alone(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    valid(folder)
    mine = folder / "runs" / "tiny"
    mine.mkdir(parents=True)
    with (mine / ".lock").open("w") as file:
        file.write(str(os.getpid()))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert call(capsys, "run", "m.yaml")[2] == [
            f"dapt: {mine} is in use by another dapt run (process {os.getpid()}): wait for it, or stop it, or choose"
            " another metadata.name"
        ]


def test_a_full_disk_ends_a_run_with_the_way_on(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/tiny/status.yaml")

    valid(folder)
    monkeypatch.setattr("dapt_operator.cli.commands.run.follow", full)
    assert call(capsys, "run", "m.yaml")[2] == [
        "dapt: runs/tiny: cannot be written: No space left on device (runs/tiny/status.yaml); free space or correct"
        " it, then start the same command again: it continues the run"
    ]
    assert not RunFolder(folder / "runs" / "tiny").is_in_use


def test_fresh_removes_nothing_when_the_new_run_could_not_start(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "m.yaml").write_text(MANIFEST)
    write_status(folder)
    assert call(capsys, "run", "m.yaml", "--fresh")[0] == 1
    assert (folder / "runs" / "tiny" / "status.yaml").is_file()


def test_a_published_run_is_not_started_again(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "m.yaml").write_text(MANIFEST)
    write_status(
        folder,
        conditions=[condition("Finished", "Published", "model published to file:///out")],
        output={"destination": "file:///out"},
    )
    assert call(capsys, "run", "m.yaml", "--no-report") == (
        0,
        ["tiny is finished already: model published to file:///out", "", "model:  /out"],
        [],
    )
