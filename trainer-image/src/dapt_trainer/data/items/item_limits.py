"""Chooses the items of a task within a limit: the same for every model, and those that decontamination looks for.

Items are taken evenly over a task's order, not from its beginning, because some sets are sorted (HellaSwag's validation
split has one source first and then the other). A group divides its limit among its tasks: in proportion to their sizes
where its score is the mean over all items, so that the mean over the chosen ones estimates it, and evenly where its
score is the mean over tasks.
"""

from __future__ import annotations

from collections.abc import Sequence


def spread(count: int, limit: int | None) -> list[int]:
    """Return the indices of at most `limit` of `count` items, evenly over their order; of all without a limit."""
    if limit is None or limit >= count:
        return list(range(count))
    return [number * count // limit for number in range(limit)]


def shares(sizes: Sequence[int], limit: int | None, *, by_size: bool) -> list[int]:
    """Return how many items each task of a group contributes; together at most `limit`.

    Args:
        sizes: items of each task.
        limit: of the group; None: all.
        by_size: in proportion to the sizes (largest remainders), else evenly.
    """
    total = sum(sizes)
    if limit is None or limit >= total:
        return list(sizes)
    if by_size:
        counts = [limit * size // total for size in sizes]
        # Of equal remainders the first tasks get the items: every model must be measured on the same ones.
        order = sorted(range(len(sizes)), key=lambda task: (-(limit * sizes[task] % total), task))
        for task in order[: limit - sum(counts)]:
            counts[task] += 1
        return counts
    counts = [0] * len(sizes)
    remaining = limit
    while remaining:
        # One item a task and round, until tasks run out of items or the limit is reached.
        open_tasks = [task for task, size in enumerate(sizes) if counts[task] < size]
        indices = spread(len(open_tasks), remaining)
        for index in indices:
            counts[open_tasks[index]] += 1
        remaining -= len(indices)
    return counts
