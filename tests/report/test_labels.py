"""Labels beside crowded points."""

from __future__ import annotations

from itertools import combinations

from dapt_operator.report.label_placement import _box, place


def test_a_lone_point_has_its_label_above() -> None:
    assert place([(50.0, 50.0)], ["12"]) == [(0.0, 10.0)]


def test_crowded_labels_cover_neither_points_nor_each_other() -> None:
    places = [(50.0, 50.0), (56.0, 47.0), (60.0, 44.0), (62.0, 43.0), (90.0, 50.0)]
    labels = ["62", "50", "37", "25"]
    boxes = [
        _box(x, y, shift, label)
        for (x, y), shift, label in zip(places[:4], place(places, labels), labels, strict=True)
    ]
    boxes += [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for (l1, b1, r1, t1), (l2, b2, r2, t2) in combinations(boxes[:4], 2):
        assert not (l1 < r2 and l2 < r1 and b1 < t2 and b2 < t1)
    for l1, b1, r1, t1 in boxes[:4]:
        assert not any(l1 < r2 and l2 < r1 and b1 < t2 and b2 < t1 for l2, b2, r2, t2 in boxes[4:])
