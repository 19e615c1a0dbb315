"""Standard errors, pairing and halves against numbers computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.items import (
    Item,
    distinct_ids,
    half_of,
    item_id,
    mean_and_error,
    read_items,
    score_of,
    write_items,
)


def items(*values: float, task: str = "t") -> list[Item]:
    return [Item(task=task, id=f"i{number}", value=value) for number, value in enumerate(values)]


def test_mean_and_standard_error_of_the_mean() -> None:
    # values 1, 0, 1, 1: mean 3/4, squared deviations 3 x 1/16 + 9/16 = 3/4, variance (3/4)/3 = 1/4, error sqrt(1/16)
    assert mean_and_error([1, 0, 1, 1]) == (0.75, 0.25)
    assert mean_and_error([1.0]) == (1.0, 0.0)


def test_a_difference_is_paired_item_by_item() -> None:
    base, new = items(1, 0, 0, 1, 0), items(1, 1, 1, 1, 0)
    score = score_of("t", "domain", "task", new, [*base, *items(1, 1, task="other")])
    # differences 0, 1, 1, 0, 0: mean 2/5, sum of squares 3 x 4/25 + 2 x 9/25 = 6/5, variance 3/10, error sqrt(3/50)
    assert score.score == pytest.approx(0.8)
    assert score.items == 5
    assert score.difference == pytest.approx(0.4)
    assert score.difference_standard_error == pytest.approx(math.sqrt(3 / 50))
    unpaired = math.hypot(score.standard_error, mean_and_error([1, 0, 0, 1, 0])[1])
    assert score.difference_standard_error is not None
    assert score.difference_standard_error < unpaired


def test_the_base_model_has_no_difference() -> None:
    score = score_of("t", "general", "probe", items(0.5, 0.25), None)
    assert (score.score, score.kind, score.difference, score.difference_standard_error) == (
        0.375,
        "probe",
        None,
        None,
    )


@pytest.mark.parametrize(("count", "halved"), [(199, False), (200, True)])
def test_halves_need_two_hundred_items(count: int, halved: bool) -> None:
    base = items(*[0.0] * count)
    new = [
        item.model_copy(update={"value": 1.0 if half_of(item.id) == "b" else 0.0})
        for item in items(*[0.0] * count)
    ]
    score = score_of("t", "domain", "task", new, base)
    assert (score.score_a, score.difference_b, score.difference_b_standard_error) == (
        (0.0, 1.0, 0.0) if halved else (None, None, None)
    )


def test_halves_are_even_and_depend_on_the_item_alone() -> None:
    share = sum(half_of(f"item-{number}") == "a" for number in range(4000)) / 4000
    assert 0.47 < share < 0.53
    assert [half_of(name) for name in ("x", "y", "z", "w", "v")] == ["b", "b", "a", "a", "b"]


def test_other_items_than_the_base_models_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        score_of("t", "domain", "task", items(1, 0, 1), items(1, 0))
    assert str(caught.value) == (
        "task t: the base model answered 2 items, this model 3, and they are not the same ones; "
        "measure the base model again with this task file"
    )


def test_an_empty_task_is_refused() -> None:
    with pytest.raises(InputError, match=r"^task t: no item to score; give a file with at least one line$"):
        score_of("t", "domain", "task", [], None)


def test_items_survive_the_file(tmp_path: Path) -> None:
    written = items(1.0, 0.0, 0.123456789)
    write_items(tmp_path / "try-1" / "items.jsonl", written)
    assert read_items(tmp_path, "try-1/items.jsonl") == tuple(written)


def test_missing_items_name_the_file_and_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_items(tmp_path, "items.jsonl")
    assert str(caught.value) == (
        f"{tmp_path}/items.jsonl: the base model's items cannot be read (FileNotFoundError); run baseline again"
    )


def test_equal_items_get_ids_of_their_own() -> None:
    assert distinct_ids(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
    assert item_id({"b": 1, "a": 2}) == item_id({"a": 2, "b": 1})


@pytest.mark.torch
@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_is_aggregated_as_the_harness_does(by_size: bool) -> None:
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr, unweighted_mean_stderr

    sizes, right = [40, 7, 15, 2], [31, 2, 9, 1]
    total = sum(sizes)
    items = [
        Item(
            task="g",
            id=f"{part}/{number}",
            value=float(number < right[part]),
            group=f"p{part}",
            weight=1.0 if by_size else total / (len(sizes) * size),
        )
        for part, size in enumerate(sizes)
        for number in range(size)
    ]
    parts = [mean_and_error([item.value for item in items if item.group == f"p{part}"]) for part in range(4)]
    means, errors = [mean for mean, _ in parts], [error for _, error in parts]
    expected = pooled_sample_stderr(errors, sizes) if by_size else unweighted_mean_stderr(errors)
    score = score_of("g", "general", "task", items, None)
    assert score.score == pytest.approx(aggregate_subtask_metrics(means, sizes, weight_by_size=by_size))
    assert score.standard_error == pytest.approx(expected)


def test_parts_of_one_item_each_use_the_deviation_between_parts() -> None:
    items = [Item(task="g", id=str(n), value=float(n % 2), group=f"p{n}") for n in range(6)]
    assert score_of("g", "general", "task", items, None).standard_error == pytest.approx(
        mean_and_error([item.value for item in items])[1]
    )


def test_items_are_read_as_they_were_written(tmp_path: Path) -> None:
    """The names of items come from people's texts, which hold what Unicode calls line breaks."""
    written = [Item(task="t\u2028\u0085", id=f"ü\x0b\x1c{number}", value=1.0) for number in range(3)]
    write_items(tmp_path / "items.jsonl", written)
    assert read_items(tmp_path, "items.jsonl") == tuple(written)
