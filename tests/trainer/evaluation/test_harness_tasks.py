"""The harness' own tasks, from folders in the layout of their repositories: stored by prepare, run offline.

The folders stand where the harness looks for the repositories: `datasets` reads `allenai/ai2_arc` from the working
folder when there is one. Their files have the fields of the real data sets; the items are ours.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.layout import HARNESS
from dapt_contract.stages.common import ModelReference, TaskConfig
from dapt_trainer.data.harness.data import read_task_data
from dapt_trainer.data.items.item_limits import shares, spread
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.harness import SharedContextModel, TaskRunner
from dapt_trainer.evaluation.items import score_of
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer

pytestmark = pytest.mark.torch

SUBJECTS = (
    "econometrics",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_psychology",
    "human_sexuality",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
)
"""Of mmlu_social_sciences; number k has k + 1 questions."""
LEGAL = {
    "abercrombie": 6,
    "corporate_lobbying": 2,
    "function_of_decision_section": 2,
    "international_citizenship_questions": 2,
    "proa": 2,
}
"""Questions of each part of legalbench."""


def rows(count: int, make: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    return [make(number) for number in range(count)]


def arc(number: int) -> dict[str, Any]:
    letters = "ABCD" if number % 2 else "1234"  # both numberings are in the real set
    texts = [f"thing {number} {word}" for word in ("red", "green", "blue", "black")]
    return {
        "id": f"q{number}",
        "question": f"Which coloured thing number {number} is the one that sleeps?",
        "choices": {"text": texts, "label": list(letters)},
        "answerKey": letters[number % 4],
    }


def hellaswag(number: int) -> dict[str, Any]:
    return {
        "ind": number,
        "activity_label": "Running",
        "ctx_a": f"A cat number {number} runs.",
        "ctx_b": "the dog",
        "endings": [f"sleeps [title] slowly {word}" for word in ("one", "two", "three", "four")],
        "label": str(number % 4),
    }


def truthful(number: int) -> dict[str, Any]:
    return {
        "question": f"Do birds eat item {number}?",
        "mc1_targets": {"choices": ["Yes they do", "No never"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["Yes they do", "No never"], "labels": [1, 0]},
    }


def mmlu(number: int) -> dict[str, Any]:
    return {
        "question": f"Which of the following is animal {number}?",
        "subject": "anatomy",
        "choices": ["red cat", "blue dog", "green bird", "black fish"],
        "answer": number % 4,
    }


def legal(number: int) -> dict[str, Any]:
    fields = (
        "text",
        "bill_title",
        "bill_summary",
        "company_name",
        "company_description",
        "Paragraph",
        "question",
    )
    return {"index": str(number), "answer": "Yes"} | dict.fromkeys(fields, f"cat {number} runs")


def write_repository(root: Path, name: str, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Files and the header that says which belong to which configuration and split, as on the hub."""
    folder = root / name
    described = []
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True)
        files = []
        for split, records in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
            files.append({"split": split, "path": f"{config}/{split}.jsonl"})
        described.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(described)}\n---\n")


NAMES = ["arc_challenge", "hellaswag", "truthfulqa_mc1", "ai2_arc", "mmlu_social_sciences", "legalbench"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    splits = {"train": rows(2100, arc), "validation": rows(3, arc), "test": rows(30, arc)}
    write_repository(root, "allenai/ai2_arc", {"ARC-Challenge": splits, "ARC-Easy": splits})
    write_repository(
        root,
        "Rowan/hellaswag",
        {
            "default": {
                "train": rows(9, hellaswag),
                "validation": rows(8, hellaswag),
                "test": rows(2, hellaswag),
            }
        },
    )
    write_repository(root, "truthfulqa/truthful_qa", {"multiple_choice": {"validation": rows(7, truthful)}})
    subjects = {
        subject: {"test": rows(count, mmlu), "dev": rows(5, mmlu)}
        for count, subject in enumerate(SUBJECTS, 1)
    }
    write_repository(root, "cais/mmlu", subjects)
    parts = {part: {"test": rows(count, legal), "train": rows(9, legal)} for part, count in LEGAL.items()}
    write_repository(root, "nguha/legalbench", parts)
    return root


@pytest.fixture(scope="module")
def stored(
    hub: Path, toy_work: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A work volume with the toy model and what the snapshot stored, and what it printed."""
    import os

    from dapt_trainer.data.harness.items import SnapshotRequest
    from dapt_trainer.data.harness.snapshot import run

    work = tmp_path_factory.mktemp("offline")
    (work / "model").symlink_to(toy_work / "model")
    before = Path.cwd()
    os.chdir(hub)
    try:
        result = run(SnapshotRequest(names=tuple(NAMES), limit=8, folder=str(work / HARNESS)))
    finally:
        os.chdir(before)
    return work, result.model_dump(mode="json")


@pytest.fixture
def model(toy_work: Path) -> SharedContextModel:
    reference = ModelReference(weights="model")
    return SharedContextModel(load_model(toy_work, reference, precision="fp32"), load_tokenizer(toy_work))


def spied(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """Every batch of (context, answer) that the model is asked; it prefers the first of four."""
    seen: list[list[tuple[str, str]]] = []

    def spy(self: Any, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        seen.append([texts for texts, _, _ in requests])
        return [(-float(number % 4), False) for number in range(len(requests))]

    monkeypatch.setattr(SharedContextModel, "_loglikelihood_tokens", spy)
    return seen


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")}


def test_what_is_evaluated_is_what_decontamination_gets(stored: tuple[Path, dict[str, Any]]) -> None:
    result = stored[1]
    assert result["errors"] == {}
    assert {name: len(task["items"]) for name, task in result["tasks"].items()} == {
        "arc_challenge": 8, "hellaswag": 8, "truthfulqa_mc1": 7, "ai2_arc": 8,
        "mmlu_social_sciences": 8, "legalbench": 8,
    }  # fmt: skip
    question, answer, choices = result["tasks"]["arc_challenge"]["items"][1]
    place = spread(30, 8)[1]
    assert question == f"Which coloured thing number {place} is the one that sleeps?"
    assert choices == arc(place)["choices"]["text"]
    assert answer == choices[place % 4]
    # HellaSwag's own preprocessing ran: title marks are gone
    assert result["tasks"]["hellaswag"]["items"][2] == [
        "Running: A cat number 2 runs. The dog",
        "sleeps. slowly three",
        [f"sleeps. slowly {word}" for word in ("one", "two", "three", "four")],
    ]
    assert result["tasks"]["truthfulqa_mc1"]["items"][3][:2] == ["Do birds eat item 3?", "Yes they do"]


@pytest.mark.parametrize(
    ("name", "few_shot", "values"),
    [
        # the spy prefers the first answer: right where the key is the first
        ("arc_challenge", 2, [float(place % 4 == 0) for place in spread(30, 8)]),
        ("hellaswag", 0, [1.0, 0.0, 0.0, 0.0] * 2),
        ("truthfulqa_mc1", 5, [1.0] * 7),
    ],
)
def test_a_stored_task_runs_without_a_hub(
    name: str, few_shot: int, values: list[float], stored: Any, model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    work = stored[0]
    before = tree(work / HARNESS)
    task = TaskConfig(name=name, side="general", few_shot=few_shot)
    seen = spied(monkeypatch)
    for seed in (1, 1, 2):
        items = TaskRunner(work, tmp_path, [task], limit=8, seed=seed).run(model, task)
        assert [item.value for item in items] == values
    assert tree(work / HARNESS) == before  # nothing was written beside the data
    assert seen[0] == seen[1]
    assert (seen[0] != seen[2]) == (
        name == "arc_challenge"
    )  # the seed chooses the examples, where there are any
    asked = seen[0][0][0]
    if name == "arc_challenge":
        assert asked.count("Question: ") == 3
    if name == "truthfulqa_mc1":  # a task that says 0 examples means it
        assert asked.count("Q: ") == 7


def test_a_stored_split_that_changed_is_not_measured_with(stored: Any, model: Any, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(stored[0] / HARNESS / "arc_challenge", work / HARNESS / "arc_challenge")
    changed = min((work / HARNESS).rglob("*.arrow"))
    changed.write_bytes(changed.read_bytes() + b" ")
    task = TaskConfig(name="arc_challenge", side="general", few_shot=0)
    with pytest.raises(InputError, match=f"{changed.parent}: has the SHA-256 .* was written there"):
        TaskRunner(work, tmp_path, [task], limit=8, seed=1).run(model, task)


def test_a_tag_has_one_score_over_its_tasks(
    stored: Any, model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    spied(monkeypatch)
    task = TaskConfig(name="ai2_arc", side="general")
    items = TaskRunner(stored[0], tmp_path, [task], limit=8, seed=1).run(model, task)
    assert [item.group for item in items] == ["arc_challenge"] * 4 + ["arc_easy"] * 4
    assert [item.value for item in items] == [float(place % 4 == 0) for place in spread(30, 4)] * 2
    assert len({item.id for item in items}) == 8


def test_a_group_by_size_gives_its_items_in_proportion(
    stored: Any, model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    seen = spied(monkeypatch)
    task = TaskConfig(name="mmlu_social_sciences", side="general", few_shot=2)
    items = TaskRunner(stored[0], tmp_path, [task], limit=8, seed=1).run(model, task)
    given = shares(range(1, 13), 8, by_size=True)
    assert Counter(item.group for item in items) == {
        f"mmlu_{subject}": count for subject, count in zip(SUBJECTS, given, strict=True) if count
    }
    assert {item.weight for item in items} == {1.0}
    asked = seen[0][0][0]
    assert asked.startswith("The following are multiple choice questions (with answers) about")
    assert asked.count("Answer:") == 3
    every = TaskRunner(stored[0], tmp_path / "all", [task], limit=None, seed=1).run(model, task)
    assert len(every) == sum(range(1, 13))
    right = [number % 4 == 0 for count in range(1, 13) for number in range(count)]
    assert score_of("m", "general", "task", every, None).score == pytest.approx(sum(right) / len(right))


def test_a_group_of_equal_parts_weighs_its_parts_alike(
    stored: Any, model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        SharedContextModel,
        "generate_until",
        lambda self, requests, **_: ["Yes"] + ["No"] * (len(requests) - 1),
    )
    task = TaskConfig(name="legalbench", side="domain", few_shot=1)
    items = TaskRunner(stored[0], tmp_path, [task], limit=None, seed=1).run(model, task)
    assert {item.group: item.weight for item in items} == {
        f"legalbench_{part}": pytest.approx(14 / (5 * count)) for part, count in LEGAL.items()
    }
    score = score_of("l", "domain", "task", items, None)
    assert score.items == 14
    assert score.score == pytest.approx(1 / 6 / 5)  # one of six in one of five parts
    # one of six: variance 1/6, standard error 1/6 of that part, none of the others
    assert score.standard_error == pytest.approx(1 / 6 / 5)


def test_only_a_part_of_an_example_split_is_stored(stored: Any) -> None:
    (dataset,) = read_task_data(stored[0], "arc_challenge").datasets
    assert {name: split.rows for name, split in dataset.splits} == {
        "train": 2000,
        "validation": 3,
        "test": 30,
    }


def test_a_task_without_stored_data_is_refused_with_the_next_step(toy_work: Path, tmp_path: Path) -> None:
    tasks = [
        TaskConfig(name="arc_easy", side="general"),
        TaskConfig(name="missing", side="domain", source="file://missing.jsonl"),
    ]
    with pytest.raises(InputError) as caught:
        TaskRunner(toy_work, tmp_path, tasks, limit=None, seed=0)
    own, custom = caught.value.problems
    assert own == f"task arc_easy: {toy_work}/harness/arc_easy/task.json is missing; run prepare again"
    assert custom.startswith(f"{toy_work}/tasks/missing.jsonl: cannot be read")


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("limit", [None, 0, 1, 7, 20, 56, 57, 200, 5000])
def test_a_limit_is_shared_out_exactly(limit: int | None, by_size: bool) -> None:
    sizes = [100 + 13 * (number % 9) for number in range(30)] + [1, 2, 3]
    given = shares(sizes, limit, by_size=by_size)
    assert sum(given) == min(sum(sizes), limit if limit is not None else 10**9)
    assert all(0 <= count <= size for count, size in zip(given, sizes, strict=True))
    if by_size and limit is not None:
        exact = [min(limit, sum(sizes)) * size / sum(sizes) for size in sizes]
        assert all(abs(count - share) < 1 for count, share in zip(given, exact, strict=True))
    if not by_size and limit == 200:
        assert set(given[:30]) <= {6, 7}
        assert given[30:] == [1, 2, 3]


def test_items_are_taken_from_the_whole_of_a_task() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == spread(3, None) == [0, 1, 2]
