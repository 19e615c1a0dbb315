"""The training order: shares exact in tokens, no row twice in an epoch, the same whatever reads it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapt_trainer.data.mixture import Mixture, SourceSize, permuted
from dapt_trainer.errors import InputError

L = 512


def source(name: str, sequences: int, weight: float = 1.0, fill: float = 1.0) -> SourceSize:
    side = "domain" if name.startswith("domain") else "general"
    return SourceSize(name, side, weight, sequences, round(sequences * L * fill))


def mixture(*sources: SourceSize, replay: float = 0.05, batch: int = 64, seed: int = 17) -> Mixture:
    return Mixture(sources, seed=seed, replay_fraction=replay, global_batch_size=batch)


SOURCES = st.tuples(
    st.lists(
        st.tuples(st.integers(1, 3000), st.floats(0.1, 10), st.floats(0.9, 1.0)), min_size=1, max_size=4
    ),
    st.lists(
        st.tuples(st.integers(1, 3000), st.floats(0.1, 10), st.floats(0.9, 1.0)), min_size=1, max_size=4
    ),
)


@settings(max_examples=50, deadline=None)
@given(sources=SOURCES, replay=st.floats(0.01, 0.9), batch=st.integers(1, 64), seed=st.integers(0, 2**31))
def test_replay_fraction_is_exact_in_tokens_over_a_run(sources, replay: float, batch: int, seed: int) -> None:
    made = [
        source(f"{side}-{index}", *numbers)
        for side, listed in zip(("domain", "general"), sources, strict=True)
        for index, numbers in enumerate(listed)
    ]
    steps = -(-4000 // batch)
    totals = mixture(*made, replay=replay, batch=batch, seed=seed).totals(steps)
    assert abs(totals.replay_fraction - replay) < 0.001


@settings(max_examples=30, deadline=None)
@given(sources=SOURCES, replay=st.floats(0.0, 0.9), batch=st.integers(1, 40), first=st.integers(0, 50))
def test_any_few_batches_hold_the_share_within_one_sequence(sources, replay, batch, first) -> None:
    made = [
        source(f"{side}-{index}", *numbers)
        for side, listed in zip(("domain", "general"), sources, strict=True)
        for index, numbers in enumerate(listed)
    ]
    order = mixture(*made, replay=replay, batch=batch)
    rows = [row for step in range(first, first + 4) for row in order.rows(step)]
    general = sum(made[index].side == "general" for index, _ in rows)
    share = order._general_share / 2**40
    assert abs(general - share * len(rows)) <= 1.0


@settings(max_examples=30, deadline=None)
@given(sources=SOURCES, batch=st.integers(1, 50), steps=st.integers(1, 60))
def test_counts_without_rows_equal_counted_rows(sources, batch: int, steps: int) -> None:
    made = [
        source(f"{side}-{index}", *numbers)
        for side, listed in zip(("domain", "general"), sources, strict=True)
        for index, numbers in enumerate(listed)
    ]
    order = mixture(*made, replay=0.2, batch=batch)
    counted = Counter(index for step in range(steps) for index, _ in order.rows(step))
    assert order.draws_of_sources(steps) == [counted[index] for index in range(len(made))]


def test_no_row_comes_twice_before_its_epoch_ends() -> None:
    made = [source("domain-0", 100), source("domain-1", 37, weight=3.0), source("general-0", 11)]
    order = mixture(*made, replay=0.2, batch=10)
    drawn: list[list[int]] = [[], [], []]
    for step in range(100):
        for index, row in order.rows(step):
            drawn[index].append(row)
    for of_source, rows in zip(made, drawn, strict=True):
        size = of_source.sequences
        assert len(rows) > 2 * size
        for epoch in range(len(rows) // size):
            assert sorted(rows[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert rows[:size] != rows[size : 2 * size]


def test_sources_keep_their_weights_within_their_side() -> None:
    order = mixture(source("domain-0", 1000), source("domain-1", 500, weight=4.0), source("general-0", 50))
    domain_0, domain_1, _ = order.draws_of_sources(400)
    assert domain_1 / domain_0 == pytest.approx(2.0, abs=0.001)


def test_the_same_step_is_the_same_batch_at_any_time() -> None:
    made = (source("domain-0", 1000), source("general-0", 50))
    whole = [mixture(*made).rows(step) for step in range(20)]
    resumed = mixture(*made)
    assert [resumed.rows(step) for step in (19, 3, 11)] == [whole[19], whole[3], whole[11]]


def test_world_size_only_slices_the_batch() -> None:
    """The order of sequences does not depend on the batch either: rank slices of one long order."""
    made = (source("domain-0", 1000), source("general-0", 50))
    small = [row for step in range(32) for row in mixture(*made, batch=8).rows(step)]
    large = [row for step in range(4) for row in mixture(*made, batch=64).rows(step)]
    assert small == large


def test_another_seed_is_another_order_with_the_same_counts() -> None:
    made = (source("domain-0", 1000), source("general-0", 50))
    one, two = mixture(*made, seed=1), mixture(*made, seed=2)
    assert one.rows(0) != two.rows(0)
    assert one.draws_of_sources(9) == two.draws_of_sources(9)


def test_totals_count_the_very_rows() -> None:
    used = [np.arange(100, 200, dtype=np.int32), np.arange(1, 51, dtype=np.int32)]
    made = [
        SourceSize("domain-0", "domain", 1.0, 100, int(used[0].sum())),
        SourceSize("general-0", "general", 1.0, 50, int(used[1].sum())),
    ]
    order = mixture(*made, replay=0.3, batch=7)
    tokens = Counter[str]()
    for step in range(33):
        for index, row in order.rows(step):
            tokens[made[index].name] += int(used[index][row])
    assert dict(order.totals(33, used).tokens_by_source) == dict(tokens)


def test_no_replay_reads_no_general_row() -> None:
    order = mixture(source("domain-0", 100), source("general-0", 50), replay=0.0)
    assert order.draws_of_sources(10) == [640, 0]


def test_replay_without_general_rows_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        mixture(source("domain-0", 100), source("general-0", 0), replay=0.05)
    assert str(caught.value) == (
        "spec.corpus.general: no sequence is left for training, but 0.05 of the tokens should come from it; "
        "add text, or change spec.corpus.replayFraction"
    )


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), epoch=st.integers(0, 5))
def test_the_permutation_is_one(size: int, epoch: int) -> None:
    images = permuted(np.arange(size, dtype=np.int64), size, (7, 0, epoch))
    assert sorted(images.tolist()) == list(range(size))
