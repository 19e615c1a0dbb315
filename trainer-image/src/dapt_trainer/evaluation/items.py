"""Items of tasks and probe sets: what one model did on each, kept so that models are compared item by item.

The standard error of a score is s / sqrt(n), with s the sample standard deviation (n - 1) of the items' values. Of a
task with parts it is that of the mean over strata, sqrt(sum of W^2 s^2 / n) with W a part's weight: where the parts
weigh as many as they have items, s is the pooled deviation within parts, else each part's own, as lm-evaluation-harness
has it for its groups (Cochran 1977, "Sampling Techniques", chapter 5). The
difference of two models is taken on the same items: its standard error is the same formula over the items' differences
(Miller 2024, "Adding Error Bars to Evals", section 4), which is smaller than that of two independent scores because
most of what makes an item hard is hard for both.
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

HALVES_FROM_ITEMS = 200
"""Fewer items have no halves: half of them would say too little."""


class Item(Contract):
    """What one model did on one item."""

    task: str
    """Name of the task or probe set."""
    id: str
    """Digest of the item's content, with its place where a set holds it twice."""
    value: float
    """1 right, 0 wrong; a probe's probability of the right answer, or its share of pairs in order."""
    group: str = ""
    """The part of the task that it belongs to, where a task has parts (mmlu has 57)."""
    weight: float = 1.0
    """In the mean over all items; items of small parts have more where the task's score is the mean over its parts."""


def item_id(content: object) -> str:
    """16 hexadecimal digits that name an item by its content."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def distinct_ids(ids: Iterable[str]) -> list[str]:
    """The ids with `-2`, `-3` behind those that were there before."""
    seen: dict[str, int] = {}
    result = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


def half_of(name: str) -> Literal["a", "b"]:
    """The half an item belongs to, by its id: the same for every model and machine."""
    return "a" if hashlib.sha256(f"half:{name}".encode()).digest()[0] % 2 == 0 else "b"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is 0 for want of anything better."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def weighted_mean_and_error(values: Sequence[tuple[float, Item]]) -> tuple[float, float]:
    """Mean of values by the weights of their items, and its standard error over the items' groups.

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
    else:  # one item a part: what differs between parts is all there is
        pooled = math.fsum((value - mean) ** 2 for value, _ in values) / (count - 1)
    by_size = all(math.isclose(shares[part], len(own) / count, rel_tol=1e-9) for part, own in parts.items())
    variance = 0.0
    for part, own in parts.items():
        alone = by_size or len(own) < 2
        variance += shares[part] ** 2 * (pooled if alone else squares[part] / (len(own) - 1)) / len(own)
    return mean, math.sqrt(variance)


def score_of(
    name: str, side: Side, kind: Literal["task", "probe"], items: Sequence[Item], base: Sequence[Item] | None
) -> Score:
    """One task's score, compared with the base model's items where there are any.

    Args:
        name: of the task or probe set.
        side: which side it stands for.
        kind: task or probe set.
        items: of the measured model, this task's alone.
        base: the base model's, all tasks; None when the measured model is the base model.

    Raises:
        InputError: there is no item, or the base model answered others.
    """
    if not items:
        raise InputError(f"{kind} {name}: no item to score; give a file with at least one line")
    mean, error = weighted_mean_and_error([(item.value, item) for item in items])
    halved = len(items) >= HALVES_FROM_ITEMS
    half_a = [(item.value, item) for item in items if half_of(item.id) == "a"] if halved else []
    result: dict[str, float | None] = {"score_a": weighted_mean_and_error(half_a)[0] if half_a else None}
    if base is not None:
        changes = _differences(name, kind, items, {item.id: item.value for item in base if item.task == name})
        result["difference"], result["difference_standard_error"] = weighted_mean_and_error(changes)
        half_b = [change for change in changes if half_of(change[1].id) == "b"] if halved else []
        if half_b:
            result["difference_b"], result["difference_b_standard_error"] = weighted_mean_and_error(half_b)
    return Score(
        name=name, side=side, kind=kind, items=len(items), score=mean, standard_error=error, **result
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
    """One line an item, written atomically.

    Raises:
        OSError: the volume is full or read-only.
    """
    write_bytes_atomically(path, "".join(item.model_dump_json() + "\n" for item in items).encode())


def read_items(path: Path) -> tuple[Item, ...]:
    """What `write_items` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return tuple(Item.model_validate_json(line) for line in path.read_text().splitlines())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the base model's items cannot be read ({type(error).__name__}); run baseline again"
        ) from error
