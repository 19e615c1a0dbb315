"""The charts of gain against forgetting: the front keeps its definition, and descriptions have every candidate."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dapt_operator.report.charts import GateLines
from dapt_operator.report.tradeoff_charts import (
    AttemptPath,
    CandidatePoint,
    attempts_chart,
    pareto_front,
    tradeoff_chart,
)

shares = st.floats(-0.5, 3.0)


def candidate(number: int, forgetting: float, gain: float) -> CandidatePoint:
    return CandidatePoint(f"a1-s{number}", 1, "checkpoint", forgetting, gain, passes=True)


@given(st.lists(st.tuples(shares, shares), max_size=12))
def test_pareto_front_has_every_candidate_that_no_other_beats(values: list[tuple[float, float]]) -> None:
    candidates = [candidate(number, *value) for number, value in enumerate(values)]
    front = pareto_front(candidates)

    def beats(one: CandidatePoint, other: CandidatePoint) -> bool:
        no_worse = one.forgetting <= other.forgetting and one.gain >= other.gain
        return no_worse and (one.forgetting, one.gain) != (other.forgetting, other.gain)

    expected = {
        (one.forgetting, one.gain) for one in candidates if not any(beats(other, one) for other in candidates)
    }
    assert {(one.forgetting, one.gain) for one in front} == expected
    assert [one.forgetting for one in front] == sorted(one.forgetting for one in front)


def test_tradeoff_chart_describes_every_candidate_and_counts_those_not_drawn() -> None:
    candidates = [candidate(10, 0.02, 0.1), candidate(20, 0.1, 0.3), candidate(30, 2.0, 0.35)]
    chart = tradeoff_chart(candidates, chosen="a1-s20", gates=GateLines(max_general_increase=0.15))
    assert chart.description == (
        "a1-s10: forgetting +2.0\u202f%, gain 0.100; a1-s20: forgetting +10.0\u202f%, gain 0.300; "
        "a1-s30: forgetting +200.0\u202f%, gain 0.350; 1 far beyond the gate are not drawn"
    )
    assert chart.png.startswith(b"\x89PNG")
    assert chart.svg.startswith("<svg")


def test_tradeoff_chart_of_only_far_candidates_shows_them() -> None:
    candidates = [candidate(10, 2.0, 0.1), candidate(20, 3.0, 0.3)]
    chart = tradeoff_chart(candidates, chosen=None, gates=GateLines(max_general_increase=0.15))
    assert "not drawn" not in chart.description


def test_attempts_chart_describes_where_each_attempt_began_and_how_it_ended() -> None:
    chart = attempts_chart(
        [
            AttemptPath(1, 0, 0.0, [(10, 0.4), (20, 3.4e8), (30, float("inf"))], "Diverged"),
            AttemptPath(2, 10, 0.4, [(20, 0.1)], ""),
        ],
        GateLines(max_general_increase=0.15, hard_stop=0.6),
    )
    assert chart.description == (
        "attempt 1 from step 0: +40.0\u202f% at step 10, +3.4e+10\u202f% at step 20, "
        "∞\u202f% at step 30; ended by Diverged. "
        "attempt 2 from step 10: +10.0\u202f% at step 20"
    )
