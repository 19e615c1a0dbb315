"""Labels beside points, where they cover neither a point nor each other; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_AWAY = 10.0
"""Points (1/72 inch) from a marker's middle to the near edge of its label."""
_MARKER = 5.0
_LETTER, _LINE = 6.0, 10.0
"""Width and height of a character."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


def place(places: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[tuple[float, float]]:
    """The middle of each label, relative to its place; in points.

    The first of eight directions, then the same further away, that is free; when none is, above.

    Args:
        places: all markers, in points; the first ones have labels, in the same order.
        labels: their texts.
    """
    taken = [(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in places]
    found = []
    for (x, y), label in zip(places, labels, strict=False):
        shifts = list(_shifts(len(label)))
        free = [shift for shift in shifts if not _covers(_box(x, y, shift, label), taken)]
        shift = (free or shifts)[0]
        taken.append(_box(x, y, shift, label))
        found.append(shift)
    return found


def _shifts(letters: int) -> Iterator[tuple[float, float]]:
    beside = _AWAY + letters * _LETTER / 2
    for times in (1.0, 1.8, 2.6):
        for across, along in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            yield across * beside * times, along * _AWAY * times


def _box(x: float, y: float, shift: tuple[float, float], label: str) -> Box:
    half_width, half_height = len(label) * _LETTER / 2, _LINE / 2
    middle_x, middle_y = x + shift[0], y + shift[1]
    return middle_x - half_width, middle_y - half_height, middle_x + half_width, middle_y + half_height


def _covers(box: Box, taken: Sequence[Box]) -> bool:
    left, bottom, right, top = box
    return any(left < r and l < right and bottom < t and b < top for l, b, r, t in taken)  # noqa: E741
