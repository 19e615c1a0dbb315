"""Items of tasks and probe sets: what one model did on each, kept so that models are compared item by item.

The standard error of a score is s / sqrt(n), with s the sample standard deviation (n - 1) of the items' values. The
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
from dapt_contract.metric import Score, Side
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
    """1 right, 0 wrong; a probe's probability of the right answer."""


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
    mean, error = mean_and_error([item.value for item in items])
    halved = len(items) >= HALVES_FROM_ITEMS
    half_a = [item.value for item in items if half_of(item.id) == "a"] if halved else []
    result: dict[str, float | None] = {"score_a": mean_and_error(half_a)[0] if half_a else None}
    if base is not None:
        differences = _differences(
            name, kind, items, {item.id: item.value for item in base if item.task == name}
        )
        result["difference"], result["difference_standard_error"] = mean_and_error(list(differences.values()))
        half_b = [value for item, value in differences.items() if half_of(item) == "b"] if halved else []
        if half_b:
            result["difference_b"], result["difference_b_standard_error"] = mean_and_error(half_b)
    return Score(
        name=name, side=side, kind=kind, items=len(items), score=mean, standard_error=error, **result
    )


def _differences(name: str, kind: str, items: Sequence[Item], base: Mapping[str, float]) -> dict[str, float]:
    if {item.id for item in items} != base.keys():
        raise InputError(
            f"{kind} {name}: the base model answered {len(base)} items, this model {len(items)}, and they are not the "
            "same ones; measure the base model again with this task file"
        )
    return {item.id: item.value - base[item.id] for item in items}


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
