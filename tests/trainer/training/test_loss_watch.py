"""Tests when skipped steps and loss spikes are divergence."""

from __future__ import annotations

import itertools
import math

import pytest

from dapt_contract.stages.pretrain import CurvePoint
from dapt_trainer.training.loss_watch import LossWatch


def quiet(count: int) -> list[float]:
    """Losses around 2 nats with a standard deviation of 0.1."""
    return list(itertools.islice(itertools.cycle([1.9, 2.1]), count))


def marks(watch: LossWatch, losses: list[float]) -> list[int]:
    """Steps at which a spike starts; stops at divergence."""
    found = []
    for step, loss in enumerate(losses, start=1):
        if watch.add(step, loss, is_skipped=math.isnan(loss)):
            found.append(step)
        if watch.divergence:
            break
    return found


def test_two_skipped_steps_in_a_row_are_counted_and_three_are_divergence() -> None:
    watch = LossWatch(1000)
    assert marks(watch, [2.0, math.nan, math.nan, 2.0]) == []
    assert (watch.skipped_steps, watch.divergence) == (2, "")
    marks(watch, [math.nan] * 3)
    assert watch.divergence == "3 steps in a row had a loss or gradient that is not a number"


def test_more_than_a_hundredth_of_the_run_skipped_is_divergence() -> None:
    watch = LossWatch(500)
    marks(watch, [2.0, math.nan] * 5)
    assert watch.divergence == ""
    marks(watch, [2.0, math.nan])
    assert watch.divergence == "6 steps had a loss or gradient that is not a number, more than 5"


def test_an_infinite_loss_counts_although_its_gradient_is_a_number() -> None:
    watch = LossWatch(1000)
    watch.add(1, math.inf, is_skipped=False)
    assert watch.skipped_steps == 1


@pytest.mark.parametrize(("loss", "expected"), [(2.59, []), (2.61, [41])])
def test_a_loss_over_six_standard_deviations_is_a_spike(loss: float, expected: list[int]) -> None:
    watch = LossWatch(1000)
    assert marks(watch, [*quiet(40), loss, *quiet(9)]) == expected
    assert (watch.loss_spikes, watch.divergence) == (len(expected), "")


def test_a_spike_of_several_steps_is_one_and_does_not_move_the_bound() -> None:
    watch = LossWatch(1000)
    assert marks(watch, [*quiet(40), *[4.0] * 10, *quiet(10), 2.65]) == [41, 61]


def test_the_first_losses_are_not_judged() -> None:
    assert marks(LossWatch(1000), [2.0] * 19 + [50.0]) == []


def test_losses_that_hardly_differ_make_no_spike_of_a_small_rise() -> None:
    assert marks(LossWatch(1000), [2.0] * 50 + [2.05]) == []


def test_three_spikes_in_two_hundred_steps_are_divergence() -> None:
    watch = LossWatch(1000)
    assert marks(watch, [*quiet(40), 5.0, *quiet(50), 5.0, *quiet(50), 5.0]) == [41, 92, 143]
    assert watch.divergence == ("the loss rose over 2.6 nats (mean + 6 sigma) for the 3rd time in 103 steps")


def test_three_spikes_in_more_steps_are_none() -> None:
    watch = LossWatch(1000)
    assert len(marks(watch, [*quiet(40), 5.0, *quiet(100), 5.0, *quiet(100), 5.0])) == 3
    assert watch.divergence == ""


def test_a_loss_that_does_not_come_back_is_divergence() -> None:
    watch = LossWatch(1000)
    marks(watch, [*quiet(40), *[5.0] * 19])
    assert watch.divergence == ""
    marks(watch, [5.0])
    assert watch.divergence == ("the loss rose over 2.6 nats (mean + 6 sigma) and stayed there for 20 steps")


def test_a_loss_of_preference_pairs_has_no_spikes() -> None:
    assert marks(LossWatch(1000, judges_spikes=False), [*quiet(40), *[50.0] * 30]) == []


def test_a_resumed_watch_judges_as_the_unbroken_one() -> None:
    losses = [*quiet(40), 5.0, math.nan, *quiet(50), 5.0, *quiet(50)]
    points = [
        CurvePoint(step=step, loss_nats=loss, learning_rate=1.0, skipped=math.isnan(loss))
        for step, loss in enumerate(losses, start=1)
    ]
    resumed = LossWatch(1000, earlier=points)
    assert (resumed.skipped_steps, resumed.loss_spikes, resumed.divergence) == (1, 2, "")
    assert resumed.add(len(losses) + 1, 5.0, is_skipped=False)
    assert "for the 3rd time in" in resumed.divergence
