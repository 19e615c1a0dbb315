"""Tasks through the harness, offline, with our batches: equal to the harness' own model, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import ModelReference, ProbeConfig, TaskConfig
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.custom_tasks import Question
from dapt_trainer.evaluation.harness import SharedContextModel, TaskRunner
from dapt_trainer.evaluation.probes import order_share, probability, read_probes, run_probes
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer

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
    rows = [
        json.loads(line) for line in (toy_work / "tasks" / "animals.jsonl").read_text().splitlines()[::12]
    ]
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


@pytest.mark.parametrize("folder", ["run[2]", "run*", "a::b", "$HOME"])
def test_a_custom_task_is_read_from_a_folder_of_any_name(
    toy_work: Path, tmp_path: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """Choices that look like dates stay the texts that they are."""
    seen: list[tuple[str, str]] = []

    def spy(self: Any, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        seen.extend(texts for texts, _, _ in requests)
        return [(-1.0, False)] * len(requests)

    monkeypatch.setattr(SharedContextModel, "_loglikelihood_tokens", spy)
    task = TaskConfig(name="dates", side="domain", source="file://dates.jsonl", few_shot=0)
    row = {"question": "When?", "choices": ["2024-01-31", "2024-02-01"], "answer": 0}
    monkeypatch.setattr("dapt_trainer.evaluation.harness.TASKS", str(tmp_path))
    (tmp_path / "dates.jsonl").write_text(json.dumps(row) + "\n")
    runner = TaskRunner(toy_work, tmp_path / folder, [task], limit=None, seed=0)
    # A neighbour that the name fits as a pattern.
    TaskRunner(toy_work, tmp_path / "runs", [task], limit=None, seed=0)
    assert len(runner.run(SharedContextModel(*loaded), task)) == 1
    assert seen == [("Question: When?\nAnswer:", " 2024-01-31"), ("Question: When?\nAnswer:", " 2024-02-01")]


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


def test_a_probe_is_the_probability_of_the_right_answer(toy_work: Path, loaded: tuple[Any, Any]) -> None:
    probe = ProbeConfig(name="facts", side="domain", source="file://facts.jsonl")
    read = read_probes(toy_work, probe, limit=None)
    items = run_probes(SharedContextModel(*loaded), "facts", read)
    for question, item in zip(read, items, strict=True):
        assert isinstance(question, Question)
        scores = [log_likelihood(*loaded, question.text, f" {choice}") for choice in question.choices]
        assert item.value == pytest.approx(probability(scores, question.answer), abs=1e-5)
    assert probability([0.0, 0.0, 0.0, 0.0], 2) == 0.25
    assert probability([-2000.0, -2001.0], 0) == pytest.approx(1 / (1 + 1 / 2.718281828), rel=1e-6)


def test_a_probe_that_orders_is_the_share_of_pairs_in_order(
    toy_work: Path, tmp_path: Path, loaded: tuple[Any, Any]
) -> None:
    order = ["red cat", "a bird sleeps under the", "dog", "green"]
    (tmp_path / "probes").mkdir()
    lines = [
        {"prompt": "the cat runs", "order": order},
        {"prompt": "the cat runs", "order": order[::-1]},
        {"prompt": "the cat runs", "choices": order, "answer": 0},
    ]
    (tmp_path / "probes/p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    probe = ProbeConfig(name="p", side="general", source="file://p.jsonl")
    forward, backward, chosen = run_probes(
        SharedContextModel(*loaded), "p", read_probes(tmp_path, probe, limit=None)
    )
    scores = [log_likelihood(*loaded, "the cat runs", f" {entry}") for entry in order]
    right = sum(scores[first] > scores[second] for second in range(4) for first in range(second))
    assert (forward.value, backward.value) == (right / 6, 1 - right / 6)
    assert chosen.value == pytest.approx(probability(scores, 0), abs=1e-5)
    assert len({forward.id, backward.id, chosen.id}) == 3


@pytest.mark.parametrize(
    ("likelihoods", "share"),
    [([-1.0, -2.0], 1.0), ([-2.0, -1.0], 0.0), ([-1.0, -1.0], 0.5), ([-1.0, -3.0, -2.0], 2 / 3)],
)
def test_pairs_in_order_are_counted_ties_half(likelihoods: list[float], share: float) -> None:
    assert order_share(likelihoods) == pytest.approx(share)
