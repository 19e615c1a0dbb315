"""Stores the value of a model on each item of a task or probe set, and computes scores with their standard errors.

The standard error of a score is s / sqrt(n), with s the sample standard deviation (n - 1) of the items' values. For a
task with parts it is that of the mean over strata, sqrt(sum of W^2 s^2 / n) with W a part's weight: where the parts
weigh as much as their number of items, s is the pooled deviation within parts, else each part's own, as in
lm-evaluation-harness for its groups (Cochran 1977, "Sampling Techniques", chapter 5).

The difference of two models is taken on the same items: its standard error is the same formula over the items'
differences (Miller 2024, "Adding Error Bars to Evals", section 4), which is smaller than that of two independent scores
because most of what makes an item hard is hard for both models.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from dapt_contract.base import Contract
from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.measure import Score, Side
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.base_model.record_lines import read_records, record_lines, records_digest

MIN_ITEMS_FOR_HALVES = 200
"""Fewer items are not divided into halves, whose scores would be too noisy."""


class Item(Contract):
    """Holds the value of one model on one item."""

    task: str
    """Name of the task or probe set."""
    id: str
    """Digest of the item's content, with a number where a set holds it several times."""
    value: float
    """1 right, 0 wrong; a probe's probability of the right answer, or its share of pairs in order."""
    group: str = ""
    """Part of the task that the item belongs to, where a task has parts (mmlu has 57)."""
    weight: float = 1.0
    """Weight in the mean over all items; it is larger for items of small parts where the task's score is the mean over
    its parts."""


def item_id(content: object) -> str:
    """Return 16 hexadecimal digits that identify an item by its content."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def distinct_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids with `-2`, `-3`, ... appended to repeated ones."""
    counts: dict[str, int] = {}
    result = []
    for id_ in ids:
        counts[id_] = counts.get(id_, 0) + 1
        result.append(id_ if counts[id_] == 1 else f"{id_}-{counts[id_]}")
    return result


def half_of(id_: str) -> Literal["a", "b"]:
    """Return the half that an item belongs to, by its id: the same for every model and machine."""
    return "a" if hashlib.sha256(f"half:{id_}".encode()).digest()[0] % 2 == 0 else "b"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; the error of a single value cannot be estimated and is 0."""
    count = len(values)
    # `fsum` is exact, so the order of the items does not change a score.
    mean = math.fsum(values) / count
    if count < 2:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def weighted_mean_and_error(values: Sequence[tuple[float, Item]]) -> tuple[float, float]:
    """Return the mean of values by the weights of their items, and its standard error over the items' groups.

    Args:
        values: at least one, each with its item.
    """
    parts: dict[str, list[float]] = {}
    weights: dict[str, float] = {}
    for value, item in values:
        parts.setdefault(item.group, []).append(value)
        weights[item.group] = weights.get(item.group, 0.0) + item.weight
    if len(parts) == 1:
        return mean_and_error([value for value, _ in values])
    total = math.fsum(weights.values())
    shares = {part: weight / total for part, weight in weights.items()}
    means = {part: math.fsum(own) / len(own) for part, own in parts.items()}
    mean = math.fsum(shares[part] * means[part] for part in parts)
    squares = {part: math.fsum((value - means[part]) ** 2 for value in own) for part, own in parts.items()}
    count = len(values)
    if count > len(parts):
        pooled = math.fsum(squares.values()) / (count - len(parts))
    else:  # with one item a part, only the deviation between parts can be estimated
        pooled = math.fsum((value - mean) ** 2 for value, _ in values) / (count - 1)
    is_by_size = all(
        math.isclose(shares[part], len(own) / count, rel_tol=1e-9) for part, own in parts.items()
    )
    variance = 0.0
    for part, own in parts.items():
        uses_pooled = is_by_size or len(own) < 2
        part_variance = pooled if uses_pooled else squares[part] / (len(own) - 1)
        variance += shares[part] ** 2 * part_variance / len(own)
    return mean, math.sqrt(variance)


def score_of(
    name: str, side: Side, kind: Literal["task", "probe"], items: Sequence[Item], base: Sequence[Item] | None
) -> Score:
    """Return the score of one task or probe set, compared with the base model's.

    Args:
        name: of the task or probe set.
        side: that it belongs to.
        kind: task or probe set.
        items: values of the measured model on this task.
        base: values of the base model on all tasks; None when the measured model is the base model.

    Raises:
        InputError: there is no item, or the base model was measured on other items.
    """
    if not items:
        raise InputError(f"{kind} {name}: no item to score; give a file with at least one line")
    mean, error = weighted_mean_and_error([(item.value, item) for item in items])
    has_halves = len(items) >= MIN_ITEMS_FOR_HALVES
    half_a = [(item.value, item) for item in items if half_of(item.id) == "a"] if has_halves else []
    fields: dict[str, float | None] = {"score_a": weighted_mean_and_error(half_a)[0] if half_a else None}
    if base is not None:
        base_values = {item.id: item.value for item in base if item.task == name}
        differences = _differences(name, kind, items, base_values)
        fields["difference"], fields["difference_standard_error"] = weighted_mean_and_error(differences)
        half_b = [entry for entry in differences if half_of(entry[1].id) == "b"] if has_halves else []
        if half_b:
            fields["difference_b"], fields["difference_b_standard_error"] = weighted_mean_and_error(half_b)
    return Score(
        name=name, side=side, kind=kind, items=len(items), score=mean, standard_error=error, **fields
    )


def _differences(
    name: str, kind: str, items: Sequence[Item], base: Mapping[str, float]
) -> list[tuple[float, Item]]:
    if {item.id for item in items} != base.keys():
        raise InputError(
            f"{kind} {name}: the base model answered {len(base)} items, this model {len(items)}, and they are not the "
            "same ones; measure the base model again with this task file"
        )
    return [(item.value - base[item.id], item) for item in items]


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write one line for each item, atomically.

    Raises:
        OSError: the volume is full or read-only.
    """
    write_bytes_atomically(path, record_lines(items))


def items_digest(items: Iterable[Item]) -> str:
    """Return the hexadecimal SHA-256 of the file that `write_items` writes."""
    return records_digest(items)


def read_items(work: Path, name: str, expected_digest: str = "") -> tuple[Item, ...]:
    """Read what `write_items` wrote; arguments and errors are those of `read_records`."""
    return read_records(work, name, Item, "items", expected_digest)
