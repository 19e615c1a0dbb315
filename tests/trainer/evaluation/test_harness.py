"""Tasks through the harness, offline, with our batches: equal to the harness' own model, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import ModelReference, ProbeConfig, TaskConfig
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.harness import SharedContextModel, TaskRunner
from dapt_trainer.evaluation.probes import probability, read_probes, run_probes
from dapt_trainer.training.models import load_model, load_tokenizer

pytestmark = pytest.mark.torch
ANIMALS = TaskConfig(name="animals", side="domain", source="file://animals.jsonl")


@pytest.fixture
def loaded(toy_work: Path) -> tuple[Any, Any]:
    return load_model(toy_work, ModelReference(weights="model"), precision="fp32"), load_tokenizer(toy_work)


def log_likelihood(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    import torch

    before, whole = tokenizer.encode(context), tokenizer.encode(context + answer)
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    return float(sum(table[place - 1, whole[place]] for place in range(len(before), len(whole))))


def test_a_custom_task_scores_by_log_likelihood_a_byte(
    toy_work: Path, tmp_path: Path, loaded: tuple[Any, Any]
) -> None:
    runner = TaskRunner(toy_work, tmp_path, [ANIMALS], limit=20, seed=0)
    items = runner.run(SharedContextModel(*loaded), ANIMALS)
    rows = [json.loads(line) for line in (toy_work / "tasks" / "animals.jsonl").read_text().splitlines()[:20]]
    expected = []
    for row in rows:
        scores = [
            log_likelihood(*loaded, f"Question: {row['question']}\nAnswer:", f" {choice}")
            / len(choice.encode())
            for choice in row["choices"]
        ]
        answer = row["answer"] if isinstance(row["answer"], int) else row["choices"].index(row["answer"])
        expected.append(float(scores.index(max(scores)) == answer))
    assert [item.value for item in items] == expected
    assert 0 < sum(expected) < 20
    assert len({item.id for item in items}) == 20


def test_few_shot_examples_are_the_same_for_every_model_and_run(
    toy_work: Path, tmp_path: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Any]] = []

    def spy(self: Any, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        seen.append([texts for texts, _, _ in requests])
        return [(-float(number % 5), False) for number in range(len(requests))]

    monkeypatch.setattr(SharedContextModel, "_loglikelihood_tokens", spy)
    task = ANIMALS.model_copy(update={"few_shot": 2})
    runner = TaskRunner(toy_work, tmp_path / "one", [task], limit=4, seed=5)
    for _ in range(2):
        runner.run(SharedContextModel(*loaded), task)
    TaskRunner(toy_work, tmp_path / "two", [task], limit=4, seed=6).run(SharedContextModel(*loaded), task)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    assert seen[0][0][0].count("Question:") == 3


def test_a_context_longer_than_the_model_keeps_its_end(toy_work: Path, loaded: tuple[Any, Any]) -> None:
    model = SharedContextModel(*loaded)
    context, answer = [5 + i % 50 for i in range(300)], [7, 8]
    long = model._loglikelihood_tokens([(("", ""), context, answer)])
    short = model._loglikelihood_tokens([(("", ""), context[-127:], answer)])
    assert long == short


def test_an_answer_without_tokens_is_named(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"^the answer ' ' has no token of its own; write it differently$"):
        SharedContextModel(*loaded)._loglikelihood_tokens([(("q", " "), [3], [])])


def test_unknown_names_and_bad_files_are_listed_together(toy_work: Path, tmp_path: Path) -> None:
    tasks = [
        TaskConfig(name="arc_esay", side="general"),
        TaskConfig(name="missing", side="domain", source="file://missing.jsonl"),
    ]
    with pytest.raises(InputError) as caught:
        TaskRunner(toy_work, tmp_path, tasks, limit=None, seed=0)
    missing, unknown = caught.value.problems
    assert missing.startswith(f"{toy_work}/tasks/missing.jsonl: cannot be read")
    assert unknown.startswith(
        "task 'arc_esay': lm-evaluation-harness has no task of that name; nearest: arc_easy"
    )


def test_a_task_whose_data_is_not_here_says_what_to_do(
    toy_work: Path, tmp_path: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TaskConfig(name="arc_easy", side="general")
    runner = TaskRunner(toy_work, tmp_path, [task], limit=2, seed=0)

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(InputError) as caught:
        runner.run(SharedContextModel(*loaded), task)
    assert str(caught.value) == (
        "task arc_easy: lm-evaluation-harness could not run it here (Couldn't reach 'allenai/ai2_arc' on the Hub "
        "(OfflineModeIsEnabled)); evaluations run offline, so give it as a custom task with `source:`"
    )


def test_a_probe_is_the_probability_of_the_right_answer(toy_work: Path, loaded: tuple[Any, Any]) -> None:
    probe = ProbeConfig(name="facts", side="domain", source="file://facts.jsonl")
    read = read_probes(toy_work, probe, limit=None)
    items = run_probes(SharedContextModel(*loaded), "facts", read)
    for question, item in zip(read, items, strict=True):
        scores = [log_likelihood(*loaded, question.text, f" {choice}") for choice in question.choices]
        assert item.value == pytest.approx(probability(scores, question.answer), abs=1e-5)
    assert probability([0.0, 0.0, 0.0, 0.0], 2) == 0.25
    assert probability([-2000.0, -2001.0], 0) == pytest.approx(1 / (1 + 1 / 2.718281828), rel=1e-6)
