"""What dapt's choice misses, where the truth is planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from science import regret, store


def test_the_planted_best_is_taken_where_readings_are_exact() -> None:
    found = regret.planted(1e-6, with_errors=True, draws=2)
    assert (found.missed_nats, found.over_limit, found.nothing) == (pytest.approx(0.0), 0.0, 0.0)


def test_with_confidence_no_candidate_over_the_limit_is_taken_and_some_gain_is_missed() -> None:
    by_readings = regret.planted(0.03, with_errors=False, draws=25)
    with_confidence = regret.planted(0.03, with_errors=True, confidence=0.95, draws=25)
    assert by_readings.over_limit > 0.1
    assert with_confidence.over_limit < by_readings.over_limit / 2
    assert with_confidence.missed_nats > by_readings.missed_nats


def run(readings: list[tuple[float, float, float, float]]) -> dict[str, object]:
    names = ("domain_a", "domain_b", "general_a", "general_b")
    steps = [
        {"step": 30 * place, **dict(zip(names, values, strict=True))}
        for place, values in enumerate(readings, start=1)
    ]
    return {"settings": {"domain": "strong", "seed": 1}, "readings": steps, "blends": []}


BASE = {"domain_a": 3.0, "domain_b": 3.0, "general_a": 2.8, "general_b": 2.8}


@pytest.mark.parametrize(
    ("second", "gain", "missed"),
    [
        ((2.5, 2.5, 2.85, 2.85), 0.5, 0.0),
        ((2.65, 2.5, 2.85, 2.85), 0.4, 0.1),  # half A thinks less of it
        ((2.5, 2.5, 2.95, 2.95), 0.4, 0.0),  # over the limit on both halves
    ],
)
def test_what_a_recorded_choice_misses_is_counted_on_half_b(
    tmp_path: Path, second: tuple[float, float, float, float], gain: float, missed: float
) -> None:
    record = run([(2.6, 2.6, 2.82, 2.82), second])
    store.write_results(tmp_path, "best", {"base_losses": {"strong": BASE, "weak": BASE}}, [record, record])
    (choice,) = regret.recorded(tmp_path)
    assert choice.gain == pytest.approx(gain)
    assert choice.missed == pytest.approx(missed)
    (ranked,) = regret.recorded(tmp_path, limit=100.0)
    assert ranked.best_gain == pytest.approx(0.5)
    assert ranked.gain == pytest.approx(0.4 if missed else 0.5)
    nothing = run([(2.6, 2.6, 3.5, 3.5), (2.6, 2.6, 3.5, 3.5)])
    store.write_results(tmp_path, "best", {"base_losses": {"strong": BASE, "weak": BASE}}, [nothing])
    assert regret.recorded(tmp_path) == (regret.Choice("best", None, None),)
