"""Tests one whole adaptation through the command line: interrupted during training, continued, finished.

Two nodes with one process each on CPU, a toy model, all seven stages, the real trainer.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS
from ruamel.yaml import YAML

from dapt_contract.pod.environment import PROGRESS_PORT
from dapt_operator.cli import main
from dapt_operator.cli.run_folder import RunFolder
from dapt_operator.runtime.metrics import exposition, summarize
from support.pod_objects import listening
from support.toy_adaptation import make_toy

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

STEPS, CHECKPOINTS = 100, 5
CANARIES = {
    name: f"canary-{number}-{name.lower()}"
    for number, name in enumerate(
        (
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "GOOGLE_API_KEY",
            "AZURE_STORAGE_KEY",
            "FSSPEC_S3_SECRET",
            "WANDB_API_KEY",
            "MLFLOW_TRACKING_PASSWORD",
        )
    )
}
"""Credentials as a local run takes them: from the environment of whoever starts it."""
STAGES = ["destination", "prepare", "baseline", "pretrain", "evaluate", "finetune", "verify", "publish"]


@dataclass
class Ended:
    """One call of `dapt`."""

    code: int
    lines: list[str]
    errors: list[str]
    listening: list[tuple[str, str]] = field(default_factory=list)
    """(command, address) of the sockets that its processes listened on."""
    commands: list[str] = field(default_factory=list)
    """Command lines of its processes."""
    environments: list[dict[str, str]] = field(default_factory=list)
    pages: dict[str, bytes] = field(default_factory=dict)
    """What its pods served while they ran, by format and address."""


def dapt(folder: Path, *arguments: str) -> Ended:
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=os.environ | CANARIES,
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout.splitlines(), done.stderr.splitlines())


def read(folder: Path, *arguments: str) -> Ended:
    """Run a command that only reads in this process: starting another takes longer than the command."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main(arguments)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue().splitlines(), errors.getvalue().splitlines())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from dapt_operator.cli import main; main()", *arguments]


def run_until_there(folder: Path, path: Path, number: signal.Signals) -> Ended:
    """`dapt run`, sent a signal as soon as a file is there."""
    out, errors = folder / "first.out", folder / "first.err"
    with out.open("w") as stdout, errors.open("w") as stderr:
        process = subprocess.Popen(
            command("run", "toy.yaml"), cwd=folder, env=os.environ | CANARIES, stdout=stdout, stderr=stderr
        )
        while process.poll() is None and not path.is_file():
            time.sleep(0.02)
        addresses = listening(process.pid)
        commands, environments = [], []
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                commands.append(" ".join(child.cmdline()))
                environments.append(child.environ())
        pages = served(environments)
        process.send_signal(number)
        code = process.wait(timeout=300)
    lines = out.read_text().splitlines(), errors.read_text().splitlines()
    return Ended(code, *lines, addresses, commands, environments, pages)


def served(environments: Iterable[dict[str, str]]) -> dict[str, bytes]:
    """Read the pages of running pods as a browser and as Prometheus do; only OpenMetrics has exemplars."""
    found = {}
    for port in {environment.get(PROGRESS_PORT, "") for environment in environments} - {""}:
        for page in ("progress", "metrics"):
            for accepted in ("*/*", OPEN_METRICS):
                url = f"http://127.0.0.1:{port}/{page}"
                request = urllib.request.Request(url, headers={"Accept": accepted})
                # Only the first pod of a run serves.
                with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:
                    found[f"{accepted} of {url}"] = answer.read()
    return found


def operators_metrics(folder: Path, name: str = "toy") -> dict[str, bytes]:
    """What an operator with this resource would serve."""
    resource = YAML(typ="safe", pure=True).load((folder / "runs" / name / "status.yaml").read_text())
    return {"metrics of the operator": exposition([summarize(resource)])}


def stages(folder: Path, name: str = "toy") -> list[dict[str, Any]]:
    stored = YAML(typ="safe", pure=True).load((folder / "runs" / name / "status.yaml").read_text())
    return list(stored["status"]["stages"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, steps=STEPS, checkpoints=CHECKPOINTS)
    return folder


@pytest.fixture(scope="module")
def stopped(toy: Path) -> Ended:
    """The first call, stopped by SIGTERM while it trains, after its first checkpoint."""
    first = toy / "runs" / "toy" / "work" / "stages" / "pretrain-a1" / "try-1" / "checkpoint-20.json"
    return run_until_there(toy, first, signal.SIGTERM)


@pytest.fixture(scope="module")
def finished(toy: Path, stopped: Ended) -> Ended:
    """The second call, to the end."""
    assert stopped.code == 143
    return dapt(toy, "run", "toy.yaml")


def test_stopped_run_explains_how_to_continue(stopped: Ended) -> None:
    assert stopped.code == 143, stopped.errors
    assert stopped.lines[-2:] == [
        "stopping: the running stage saves first (once more to stop at once)",
        "stopped; `dapt run toy.yaml` continues the run",
    ]


def test_a_local_run_listens_on_the_loopback_address_alone(stopped: Ended) -> None:
    ranks = [address for command, address in stopped.listening if "dapt_trainer.worker" in command]
    assert len(ranks) >= 3, "two ranks of gloo, and the page of the first"
    assert {address for _, address in stopped.listening} == {"127.0.0.1"}


def test_stopped_run_continues_and_publishes(finished: Ended, toy: Path) -> None:
    assert finished.code == 0, finished.errors
    assert finished.lines[-2:] == ["report: runs/toy/report.html", f"model:  {toy}/out"]
    (took,) = [line for line in finished.lines if line.startswith("took ")]
    assert took.endswith(", in 2 invocations of dapt run")


def test_nothing_that_was_done_is_done_again(finished: Ended, toy: Path) -> None:
    found = {(stage["kind"], stage["try"], stage["state"]) for stage in stages(toy)}
    assert [stage["kind"] for stage in stages(toy)] == STAGES
    assert found == {(kind, 2 if kind == "pretrain" else 1, "Succeeded") for kind in STAGES}
    usage = RunFolder(toy / "runs" / "toy").status().usage
    assert usage is not None
    assert usage.restarts == 0, "a stop by the user is no fault"


def test_training_went_on_from_what_was_saved(finished: Ended, toy: Path) -> None:
    tries = toy / "runs" / "toy" / "work" / "stages" / "pretrain-a1"
    report = json.loads((tries / "try-2" / "report.json").read_text())["body"]["report"]
    assert report["facts"]["steps"] == STEPS
    assert [row["step"] for row in report["facts"]["checkpoints"]] == [20, 40, 60, 80, 100]
    assert {row["try_number"] for row in report["facts"]["checkpoints"]} == {1, 2}
    assert [point["step"] for point in report["curve"]] == list(range(1, STEPS + 1))


def test_the_table_compares_three_models(finished: Ended) -> None:
    heading = next(line for line in finished.lines if line.lstrip().startswith("base "))
    assert heading.split() == ["base", "chosen", "a1-s100", "final"]
    domain = next(line for line in finished.lines if line.startswith("domain perplexity "))
    assert "(-" in domain, "the toy learns its domain"
    answers = [line.partition(":")[0] for line in finished.lines if line.startswith(("before:", "after:"))]
    assert answers == ["before", "after"] * 3, "each of three questions is answered by both"


def test_what_is_left_behind(finished: Ended, toy: Path) -> None:
    run = toy / "runs" / "toy"
    assert (run / "report.html").stat().st_size > 10_000
    assert {path.name for path in (toy / "out").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }


def test_no_credential_of_the_environment_is_left_anywhere(
    stopped: Ended, finished: Ended, toy: Path
) -> None:
    assert any(environment.items() >= CANARIES.items() for environment in stopped.environments), (
        "they were given"
    )
    written = {"command lines": "\n".join(stopped.commands).encode()}
    for name, ended in (("first", stopped), ("second", finished)):
        written[name] = "\n".join(ended.lines + ended.errors).encode()
    # Progress and metrics: names, labels, help texts, values and exemplars.
    assert any(b"\ndapt_trainer_loss{" in page for page in stopped.pages.values()), "a training was scraped"
    written |= stopped.pages
    metrics = operators_metrics(toy)
    assert all(b"\ndapt_gain{" in page for page in metrics.values())
    written |= metrics
    # Logs, Events, status, checkpoints, reports, page, model and card.
    written |= {str(path): path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    assert len(written) > 50
    secrets = [
        form for value in CANARIES.values() for form in (value.encode(), base64.b64encode(value.encode()))
    ]
    assert [(name, form) for name, content in written.items() for form in secrets if form in content] == []


def test_a_finished_run_is_not_run_again(finished: Ended, toy: Path) -> None:
    before = (toy / "runs" / "toy" / "events.jsonl").read_text()
    again = dapt(toy, "run", "toy.yaml")
    assert again.code == 0
    assert again.lines[0] == f"toy is finished already: model published to file://{toy}/out"
    assert (toy / "runs" / "toy" / "events.jsonl").read_text() == before


def test_status_and_report_read_the_finished_run(finished: Ended, toy: Path) -> None:
    table = read(toy, "status")
    assert table.lines[1].split()[:4] == ["toy", "Published", "100", "%"]
    one = read(toy, "status", "toy")
    assert one.lines[0] == "toy  Published"
    assert sum(line.startswith("✓") for line in one.lines) == len(STAGES)
    page = toy / "runs" / "toy" / "report.html"
    page.unlink()
    assert read(toy, "report").lines == ["wrote runs/toy/report.html"]
    assert page.is_file()


def test_bad_lines_end_a_run_with_their_places(tmp_path: Path) -> None:
    make_toy(tmp_path, name="bad")
    data = tmp_path / "text" / "domain.jsonl"
    lines = data.read_text().splitlines()
    lines[4], lines[8] = '{"text": "broken', '{"body": "no text"}'
    data.write_text("\n".join(lines) + "\n")
    ended = dapt(tmp_path, "run", "bad.yaml", "--no-report")
    assert ended.code == 1
    assert len(ended.errors) == 1, "a sentence and no traceback"
    assert f"spec.corpus.domain[0]: {data}:5: not JSON" in ended.errors[0]
    assert f"spec.corpus.domain[0]: {data}:9: no field 'text'" in ended.errors[0]
    assert "badRecords.maxFraction" in ended.errors[0]
    assert ended.errors[0].endswith("(logs: runs/bad/logs)")
    assert [(stage["kind"], stage["try"], stage["state"]) for stage in stages(tmp_path, "bad")] == [
        ("destination", 1, "Succeeded"),
        ("prepare", 1, "Failed"),
    ]
