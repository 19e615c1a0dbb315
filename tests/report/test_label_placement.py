"""Labels next to crowded points cover neither points nor each other."""

from __future__ import annotations

from itertools import combinations

from dapt_operator.report.label_placement import Box, label_box, place_labels


def test_a_lone_point_has_its_label_above() -> None:
    assert place_labels([(50.0, 50.0)], ["12"]) == [(0.0, 10.0)]


def test_crowded_labels_cover_neither_points_nor_each_other() -> None:
    markers = [(50.0, 50.0), (56.0, 47.0), (60.0, 44.0), (62.0, 43.0), (90.0, 50.0)]
    labels = ["62", "50", "37", "25"]
    label_boxes = [
        label_box(marker, shift, label)
        for marker, shift, label in zip(markers[:4], place_labels(markers, labels), labels, strict=True)
    ]
    marker_boxes = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in markers]
    for first, second in [
        *combinations(label_boxes, 2),
        *((box, marker) for box in label_boxes for marker in marker_boxes),
    ]:
        overlap_x = first.left < second.right and second.left < first.right
        overlap_y = first.bottom < second.top and second.bottom < first.top
        assert not (overlap_x and overlap_y)


def test_a_label_stays_inside_the_axes() -> None:
    area = Box(40.0, 40.0, 200.0, 200.0)
    label = "s23-i0.8"
    for marker in ((42.0, 198.0), (198.0, 42.0)):
        (shift,) = place_labels([marker], [label], area)
        assert area.contains(label_box(marker, shift, label))
