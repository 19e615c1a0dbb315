"""The key of the base model's results: everything that decides the numbers, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.measure import Measure, Perplexity, SidePerplexity
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile, write_report
from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts, BaselineReport
from dapt_contract.stages.common import EvaluationConfig, ModelReference, ProbeConfig, TaskConfig
from dapt_trainer.evaluation.earlier_results import found_by_all, kept_results, results_key
from dapt_trainer.evaluation.items import Item, write_items

EVALUATION = EvaluationConfig(
    tasks=(
        TaskConfig(name="own", side="domain", source="file://own.jsonl"),
        TaskConfig(name="mmlu", side="general", few_shot=5),
    ),
    probes=(ProbeConfig(name="facts", side="domain", source="file://facts.jsonl"),),
    context_length_tokens=32,
)
FILES = (
    "held-out/domain-a.jsonl",
    "held-out/general-b.jsonl",
    "model/tokenizer.json",
    "tasks/own.jsonl",
    "harness/mmlu/task.json",
    "probes/facts.jsonl",
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in (*FILES, "tasks/other.jsonl", "data/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}\n")
    return tmp_path


def key(work: Path, evaluation: EvaluationConfig = EVALUATION, **changes: Any) -> str:
    return results_key(work, evaluation, **({"weights_digest": "sha256:w", "device": "cpu"} | changes))


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_is_read_counts(work: Path, name: str) -> None:
    before = key(work)
    (work / name).write_text("changed\n")
    assert key(work) != before


def test_what_is_not_read_does_not_count(work: Path) -> None:
    before = key(work)
    (work / "tasks/other.jsonl").write_text("changed\n")
    (work / "data/manifest.json").write_text("changed\n")
    assert key(work) == before


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 5},
        {"seed": 1},
        {"context_length_tokens": 64},
        {"tasks": EVALUATION.tasks[:1]},
        {"tasks": (EVALUATION.tasks[0].model_copy(update={"few_shot": 1}), EVALUATION.tasks[1])},
    ],
)
def test_every_setting_counts(work: Path, change: dict[str, Any]) -> None:
    assert key(work, EVALUATION.model_copy(update=change)) != key(work)


def test_model_and_device_count_and_where_a_file_came_from_does_not(work: Path) -> None:
    keys = {key(work), key(work, weights_digest="sha256:v"), key(work, device="cuda")}
    assert len(keys) == 3
    moved = EVALUATION.tasks[0].model_copy(update={"source": "s3://elsewhere/own.jsonl"})
    assert key(work, EVALUATION.model_copy(update={"tasks": (moved, EVALUATION.tasks[1])})) in keys


def finished(work: Path, name: str, results: str, items: tuple[Item, ...] | None) -> BaselineReport:
    """A finished baseline below `stages/`."""
    half = Perplexity(nll_nats=1.0, tokens=1, bytes=1)
    side = SidePerplexity(a=half, b=half)
    identity = RunIdentity(namespace="n", name="x", uid="u", stage=name, attempt=1, try_number=1, fence=1)
    config = BaselineConfig(model=ModelReference(weights="model"), evaluation=EVALUATION)
    path = f"stages/{identity.lineage}/try-1/items.jsonl"
    (work / path).parent.mkdir(parents=True)
    if items is not None:
        write_items(work / path, items)
    report = BaselineReport(
        facts=BaselineFacts(measure=Measure(digest=name, domain=side, general=side)),
        items_path=path,
        key=results,
    )
    write_report(work, StageFile(run=identity, kind="baseline", config=config), report)
    return report


def test_results_are_found_by_their_key_in_any_lineage(work: Path) -> None:
    items = (
        Item(task="own", id="1", value=1.0),
        Item(task="mmlu", id="a/2", value=0.0, group="a", weight=2.0),
    )
    assert kept_results(work, "k") is None
    finished(work, "baseline", "other", items)
    finished(work, "cleaned", "k", None)
    assert kept_results(work, "k") is None  # its items are gone
    report = finished(work, "second", "k", items)
    assert kept_results(work, "k") == (report, items, "stages/second-a1")
    assert kept_results(work, "") is None


class Peers:
    """The ranks of a stage, of which some found nothing."""

    world_size = 2

    def __init__(self, missing: float) -> None:
        self._missing = missing

    def maximum(self, value: float) -> float:
        return max(value, self._missing)


@pytest.mark.parametrize(
    ("own", "missing", "all_found"), [(True, 0.0, True), (True, 1.0, False), (False, 0.0, False)]
)
def test_results_are_read_again_only_when_every_rank_sees_them(
    own: bool, missing: float, all_found: bool
) -> None:
    peers: Any = Peers(missing)
    assert found_by_all(peers, own) is all_found
