"""Places labels next to points, where they cover neither a point nor each other; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_DISTANCE = 10.0
"""Distance of a label's near edge from the middle of its marker, in points (1/72 inch)."""
_MARKER = 5.0
"""Half the width of a marker, in points."""
_CHARACTER_WIDTH, _CHARACTER_HEIGHT = 6.0, 10.0
"""Size of a character, in points."""
_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Above, below, right, left, then the corners: the order of preference."""
_DISTANCE_FACTORS = (1.0, 1.8, 2.6)


class Box(NamedTuple):
    """A rectangle on the page, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def contains(self, other: Box) -> bool:
        """Return whether the other rectangle lies in this one as a whole."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )

    def covers(self, other: Box) -> bool:
        """Return whether the two rectangles share some area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )


def place_labels(
    markers: Sequence[tuple[float, float]], labels: Sequence[str], area: Box | None = None
) -> list[tuple[float, float]]:
    """Return the middle of each label relative to its marker, in points.

    A label gets the first free place of eight directions, at growing distances; when none is free, the one above.

    Args:
        markers: all markers, in points; the first ones have labels, in the same order.
        labels: their texts.
        area: where labels may stand, since the numbers of the axes are around it; None: anywhere.
    """
    occupied = [Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in markers]
    shifts = []
    for marker, label in zip(markers, labels, strict=False):
        candidates = list(_shifts(len(label)))
        if area is not None:
            inside = [shift for shift in candidates if area.contains(label_box(marker, shift, label))]
            candidates = inside or candidates
        free = (shift for shift in candidates if not _covers_any(label_box(marker, shift, label), occupied))
        shift = next(free, candidates[0])
        occupied.append(label_box(marker, shift, label))
        shifts.append(shift)
    return shifts


def label_box(marker: tuple[float, float], shift: tuple[float, float], label: str) -> Box:
    """Return the rectangle that a label takes when its middle is shifted from its marker."""
    half_width, half_height = len(label) * _CHARACTER_WIDTH / 2, _CHARACTER_HEIGHT / 2
    x, y = marker[0] + shift[0], marker[1] + shift[1]
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)


def _shifts(num_characters: int) -> Iterator[tuple[float, float]]:
    sideways = _DISTANCE + num_characters * _CHARACTER_WIDTH / 2
    for factor in _DISTANCE_FACTORS:
        for x, y in _DIRECTIONS:
            yield x * sideways * factor, y * _DISTANCE * factor


def _covers_any(box: Box, others: Sequence[Box]) -> bool:
    return any(box.covers(other) for other in others)
