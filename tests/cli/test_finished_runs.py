"""A finished run says that its manifest asks for something else by now, where, and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.cli import main
from dapt_operator.cli.commands.run import as_stored
from dapt_operator.cli.file_changes import changed_files
from dapt_operator.cli.inputs.machine import built_in_profile
from dapt_operator.cli.inputs.manifests import read_request
from dapt_operator.cli.run_folder import RunFolder
from dapt_operator.cluster.local.invocations import Invocations, RunTime, read_invocations

SPEC: dict[str, Any] = {
    "model": {"source": "file://base"},
    "corpus": {
        "domain": [{"source": "file://a.jsonl", "maxTokens": 12000}, {"source": "file://b.jsonl"}],
        "general": [{"source": "file://general.jsonl"}],
        "sequenceLength": 64,
    },
    "output": {"destination": "file://out"},
    "resources": {"nodes": 1, "gpusPerNode": 1},
}
ADVICE = "`dapt run m.yaml --fresh` removes this run and starts over, another metadata.name keeps both"
DESTINATION = "; both need another output.destination too, since this one holds the model"
DIFFERS = "dapt: m.yaml: differs from what was run, and nothing of that is done: "


def write_manifest(spec: dict[str, Any]) -> None:
    document = {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": "tiny"},
        "spec": spec,
    }
    with Path("m.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a published run, below the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_manifest(SPEC)
    request = read_request(Path("m.yaml"), None)
    stored, _ = as_stored(request.adaptation, built_in_profile(request.adaptation))
    run = Path("runs/tiny")
    (run / "objects").mkdir(parents=True)
    (run / "objects" / "domainadaptation-tiny.json").write_text(json.dumps(stored))
    condition = {
        "type": "Finished",
        "status": "True",
        "reason": "Published",
        "message": "model published to file:///out",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }
    status = {"phase": "Published", "conditions": [condition]}
    with (run / "status.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump({"metadata": {"name": "tiny"}, "status": status}, file)
    return run


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, list[str]]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err.splitlines()


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(json.dumps(SPEC))
    change(spec)
    return spec


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (
            lambda spec: spec["corpus"]["domain"][0].update(maxTokens=13000),
            "spec.corpus.domain[0].maxTokens is 13000 and was 12000",
        ),
        (lambda spec: spec.update(seed=18), "spec.seed is 18 and was 17"),
        (
            lambda spec: spec["corpus"]["domain"].append({"source": "file:///c.jsonl"}),
            "spec.corpus.domain is a list of 3 items and was a list of 2 items",
        ),
        (
            lambda spec: spec.update(finetuning={"data": [{"source": "file:///x.jsonl"}]}),
            "spec.finetuning was added",
        ),
        (
            lambda spec: spec["output"].update(destination="file:///elsewhere"),
            "spec.output.destination is 'file:///elsewhere' and was '{folder}/out'",
        ),
    ],
)
def test_an_edited_manifest_of_a_finished_run_is_answered_with_the_fields(
    capsys: pytest.CaptureFixture[str], finished: Path, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    write_manifest(edited(change))
    code, out, problems = call(capsys, "run", "m.yaml", "--no-report")
    assert code == 1
    assert out.startswith("tiny is finished already: model published to file:///out\n")
    expected = where.replace("{folder}", f"file://{finished.resolve().parents[1]}")
    destination = "" if "destination" in where else DESTINATION
    assert problems == [f"{DIFFERS}{expected}; {ADVICE}{destination}"]


def test_a_destination_in_the_runs_folder_is_free_after_fresh(
    capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    inside = {"output": {"destination": "file://runs/tiny/model"}}
    stored = json.loads((finished / "objects" / "domainadaptation-tiny.json").read_text())
    stored["spec"]["output"]["destination"] = f"file://{finished.resolve()}/model"
    (finished / "objects" / "domainadaptation-tiny.json").write_text(json.dumps(stored))
    write_manifest(edited(lambda spec: spec.update(inside, seed=18)))
    assert call(capsys, "run", "m.yaml", "--no-report")[2] == [
        f"{DIFFERS}spec.seed is 18 and was 17; {ADVICE}; another name needs another output.destination too, since"
        " --fresh removes the model with its run"
    ]


def test_what_gates_and_selection_would_decide_can_be_asked(
    capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    write_manifest(edited(lambda spec: spec.update(selection={"pin": "a1-s19"})))
    assert call(capsys, "run", "m.yaml", "--no-report")[2] == [
        f"{DIFFERS}spec.selection.pin is 'a1-s19' and was not set; {ADVICE}, and `dapt rejudge tiny m.yaml` shows"
        f" what they would decide{DESTINATION}"
    ]


def test_many_changes_are_counted(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    gates = {"maxGeneralPerplexityIncrease": 0.3, "minDomainPerplexityDecrease": 0.1, "onBreach": "Warn"}
    optimizer = {"learningRate": 1e-4, "weightDecay": 0.2}
    many = {"gates": gates, "pretraining": {"optimizer": optimizer, "globalBatchSize": 8}, "seed": 3}
    write_manifest(edited(lambda spec: spec.update(many)))
    (problem,) = call(capsys, "run", "m.yaml", "--no-report")[2]
    assert problem.count(" and was ") == 5
    assert f" and 2 more; {ADVICE}" in problem


def with_stages(run: Path, **starts: str) -> None:
    """Let the status say when stages started."""
    yaml = YAML(typ="safe", pure=True)
    document = yaml.load((run / "status.yaml").read_text())
    document["status"]["stages"] = [
        {"name": kind, "kind": kind, "startTime": start} for kind, start in starts.items()
    ]
    with (run / "status.yaml").open("w") as file:
        yaml.dump(document, file)


def write_file(name: str, modified: str) -> None:
    Path(name).write_text("{}")
    seconds = datetime.fromisoformat(modified).timestamp()
    os.utime(name, (seconds, seconds))


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_file_that_was_changed_after_it_was_read_is_named(
    capsys: pytest.CaptureFixture[str], finished: Path, command: str
) -> None:
    Invocations().next(Path("m.yaml")).after(75).write(finished)
    write_file("a.jsonl", "2026-01-31T11:00:01.500Z")
    write_file("b.jsonl", "2026-01-31T11:00:00.900Z")
    arguments = ("run", "m.yaml", "--no-report") if command == "run" else ("status", "tiny")
    with_stages(finished, prepare="2026-01-31T11:00:01Z")
    assert "changed after" not in call(capsys, *arguments)[1]
    with_stages(finished, prepare="2026-01-31T11:00:00Z")
    code, out, problems = call(capsys, *arguments)
    assert (code, problems) == (0, [])
    manifest = Path("m.yaml") if command == "run" else Path("m.yaml").resolve()
    shown = " ".join(line.strip() for line in out.splitlines())
    assert (
        f"{Path('a.jsonl').resolve()} was changed after this run had read it, and nothing of that is done: `dapt run"
        f" {manifest} --fresh` removes this run and starts over, another metadata.name keeps both{DESTINATION}"
    ) in shown


@pytest.mark.parametrize(
    "edit",
    [
        {"suspend": True},
        {"resources": {"nodes": 2, "gpusPerNode": 4}},
        {"limits": {"gpuHours": 3}},
        {"seed": 17},
        {"gates": {}},
        {"stageResources": {"verify": {"cpu": "2"}}},
    ],
    ids=str,
)
def test_what_changes_nothing_about_the_result_is_not_named(
    capsys: pytest.CaptureFixture[str], finished: Path, edit: dict[str, Any]
) -> None:
    write_manifest(edited(lambda spec: spec.update(edit)))
    code, _, problems = call(capsys, "run", "m.yaml", "--no-report")
    assert (code, problems) == (0, [])


def test_status_of_a_finished_run_says_that_its_manifest_was_edited(
    capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    Invocations().next(Path("m.yaml")).after(75).write(finished)
    assert "differs" not in call(capsys, "status", "tiny")[1]
    write_manifest(edited(lambda spec: spec.update(seed=18)))
    lines = call(capsys, "status", "tiny")[1].splitlines()
    assert (lines[0].rstrip(), "took 1 min 15 s") == ("tiny  Published", lines[2].rstrip())
    shown = " ".join(line.strip() for line in lines)
    assert "differs from what was run, and nothing of that is done: spec.seed is 18 and was 17" in shown
    Path("m.yaml").unlink()
    assert "differs" not in call(capsys, "status", "tiny")[1]


def test_a_run_of_another_version_is_shown_without_a_comparison(
    capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    (finished / "objects" / "domainadaptation-tiny.json").write_text('{"spec": {"unknown": 1}}')
    write_manifest(edited(lambda spec: spec.update(seed=18)))
    assert call(capsys, "run", "m.yaml", "--no-report")[0] == 0


def test_the_time_of_all_invocations_is_kept(tmp_path: Path) -> None:
    now = [100.0]
    for seconds in (30.0, 45.0):
        invocations = read_invocations(tmp_path).next(Path("m.yaml"))
        run_time = RunTime(tmp_path, invocations, lambda: now[0])
        now[0] += seconds
        run_time.save()
        now[0] += 5.0
        run_time.save()
    stored = read_invocations(tmp_path)
    assert (stored.number, stored.seconds) == (2, 85.0)
    assert stored.sentence == "took 1 min 25 s, in 2 invocations of dapt run"
    assert Invocations(1, 48.0).sentence == "took 48 s"
    assert stored.manifest == str(Path("m.yaml").resolve())
    (tmp_path / "invocations.json").write_text("{")
    assert read_invocations(tmp_path) == Invocations()


@pytest.mark.parametrize("name", ["a.jsonl", "base/config.json"])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_files_of_a_run_that_goes_on_are_named_once_no_stage_reads_them_again(
    tmp_path: Path, name: str, is_frozen: bool
) -> None:
    (tmp_path / "base").mkdir()
    write_file(str(tmp_path / name), "2026-01-31T11:00:05Z")
    corpus = SPEC["corpus"] | {"domain": [{"source": f"file://{tmp_path}/a.jsonl"}]}
    spec = DomainAdaptationSpec.model_validate(
        SPEC | {"model": {"source": f"file://{tmp_path}/base"}, "corpus": corpus}
    )
    starts = {"prepare": "2026-01-31T11:00:00Z"} | ({"baseline": "2026-01-31T11:00:09Z"} if is_frozen else {})
    stages = [{"name": kind, "kind": kind, "startTime": start} for kind, start in starts.items()]
    status = DomainAdaptationStatus.model_validate({"stages": stages})
    sentence = changed_files(RunFolder(tmp_path / "runs" / "tiny"), spec, status, Path("m.yaml"))
    expected = (
        f"{tmp_path / name} was changed after this run had read it, and nothing of that is done: `dapt run m.yaml"
        " --fresh` removes this run and starts over, another metadata.name keeps both"
    )
    assert sentence == (expected if is_frozen else "")
