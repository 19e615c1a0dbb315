"""Which items of a task a limit leaves: the same for every model, and those that decontamination looks for.

Items are taken evenly over a task's order, not from its beginning: some sets are sorted (HellaSwag's validation split
has one source first and the other behind it). A group shares its limit out: in proportion to its tasks' sizes where
its score is the mean over all items, so that the mean over the chosen ones estimates it, and evenly where it is the
mean over tasks.
"""

from __future__ import annotations

from collections.abc import Sequence


def spread(count: int, limit: int | None) -> list[int]:
    """Places of at most `limit` of `count` items, evenly over their order; all without a limit."""
    if limit is None or limit >= count:
        return list(range(count))
    return [number * count // limit for number in range(limit)]


def shares(sizes: Sequence[int], limit: int | None, *, by_size: bool) -> list[int]:
    """How many items each task of a group gives; together at most `limit`.

    Args:
        sizes: items of each task.
        limit: of the group; None: all.
        by_size: in proportion to the sizes (largest remainders), else evenly.
    """
    total = sum(sizes)
    if limit is None or limit >= total:
        return list(sizes)
    if by_size:
        given = [limit * size // total for size in sizes]
        order = sorted(range(len(sizes)), key=lambda task: (-(limit * sizes[task] % total), task))
        for task in order[: limit - sum(given)]:
            given[task] += 1
        return given
    given = [0] * len(sizes)
    left = limit
    while left:
        open_tasks = [task for task, size in enumerate(sizes) if given[task] < size]
        places = spread(len(open_tasks), left)
        for place in places:
            given[open_tasks[place]] += 1
        left -= len(places)
    return given
