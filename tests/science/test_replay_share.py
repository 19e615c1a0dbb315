"""The line that the replay warning uses is that of the committed records, and a planted one is found again."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dapt_operator.plan.sizing import resolve
from science import replay_share, store

RUNS = replay_share.recorded(store.RESULTS)
FITTED = [run for run in RUNS if run.is_fitted]


def test_the_line_of_the_product_is_fitted_on_the_records() -> None:
    assert replay_share.fitted(FITTED) == pytest.approx(resolve.RECORDED_LINE, abs=0.005)
    shifts = {run.shift for run in FITTED}
    assert resolve.RECORDED_SHIFTS_NATS[0] <= min(shifts)
    assert max(shifts) <= resolve.RECORDED_SHIFTS_NATS[1]
    assert {run.share for run in FITTED} == set(resolve.RECORDED_SHARES)


def test_seeds_and_shares_apart_from_the_fit_are_within_a_seeds_spread_of_the_line() -> None:
    line = replay_share.fitted(FITTED)
    apart = [run for run in RUNS if not run.is_fitted and run.share >= resolve.RECORDED_SHARES[0]]
    assert {run.seed for run in apart} == {1, 2, 3, 4, 5, 6}
    for run in apart:
        assert replay_share.forgetting_by(line, run.share, run.shift) == pytest.approx(
            run.forgetting, abs=0.015
        )
    assert all(
        expected == pytest.approx(run.forgetting, abs=0.02)
        for run, expected in replay_share.seeds_apart(RUNS)
    )


def test_a_planted_line_is_found_and_gives_the_share_at_the_limit() -> None:
    line = (-1.0, -3.0, 0.2)
    planted = [
        replace(run, forgetting=math.exp(line[0] + line[1] * run.share + line[2] * run.shift))
        for run in FITTED
    ]
    assert replay_share.fitted(planted) == pytest.approx(line)
    share = replay_share.share_by(line, 0.8)
    assert replay_share.forgetting_by(line, share, 0.8) == pytest.approx(math.log(1.15))
