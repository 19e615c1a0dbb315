"""The training order: shares exact in tokens, no row twice in an epoch, the same whatever reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapt_contract.measure import Side
from dapt_contract.stages.pretrain import MixturePhase
from dapt_trainer.data.packing.mixture import Mixture, MixtureSource, permuted
from dapt_trainer.errors import InputError

L = 512


def source(name: str, sequences: int, weight: float = 1.0, fill: float = 1.0) -> MixtureSource:
    side: Side = "domain" if name.startswith("domain") else "general"
    return MixtureSource(name, side, weight, sequences, round(sequences * L * fill))


def mixture(
    *sources: MixtureSource,
    replay: float = 0.05,
    batch: int = 64,
    seed: int = 17,
    earlier: Sequence[tuple[int, float]] = (),
) -> Mixture:
    phases = [MixturePhase(steps=steps, replay_fraction=fraction) for steps, fraction in earlier]
    return Mixture(sources, seed=seed, replay_fraction=replay, global_batch_size=batch, earlier_phases=phases)


PHASES = st.lists(st.tuples(st.integers(0, 40), st.floats(0.0, 0.9)), min_size=1, max_size=4)


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
def test_a_few_batches_hold_the_share_within_one_sequence(sources, replay, batch, first) -> None:
    made = [
        source(f"{side}-{index}", *numbers)
        for side, listed in zip(("domain", "general"), sources, strict=True)
        for index, numbers in enumerate(listed)
    ]
    order = mixture(*made, replay=replay, batch=batch)
    rows = [row for step in range(first, first + 4) for row in order.rows(step)]
    general = sum(made[index].side == "general" for index, _ in rows)
    in_the_long_run = order.draws_of_sources(1_000_000)
    share = sum(draws for it, draws in zip(made, in_the_long_run, strict=True) if it.side == "general")
    assert abs(general - share / sum(in_the_long_run) * len(rows)) <= 1.0 + 1e-3


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
        MixtureSource("domain-0", "domain", 1.0, 100, int(used[0].sum())),
        MixtureSource("general-0", "general", 1.0, 50, int(used[1].sum())),
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


def phases_in_turn(
    made: list[MixtureSource], phases: Sequence[tuple[int, float]], **options: int
) -> list[Mixture]:
    """The mixture of each attempt, which knows what those before it read."""
    return [
        mixture(*made, replay=replay, earlier=phases[:number], **options)
        for number, (_, replay) in enumerate(phases)
    ]


@settings(max_examples=30, deadline=None)
@given(sources=SOURCES, phases=PHASES, batch=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_over_all_phases_every_epoch_of_a_source_has_each_row_once(sources, phases, batch, seed) -> None:
    made = [
        source(f"{side}-{index}", sequences % 60 + 1, weight, fill)
        for side, listed in zip(("domain", "general"), sources, strict=True)
        for index, (sequences, weight, fill) in enumerate(listed)
    ]
    drawn: list[list[int]] = [[] for _ in made]
    sums = [0] * len(made)
    for (steps, _), order in zip(phases, phases_in_turn(made, phases, batch=batch, seed=seed), strict=True):
        for step in range(steps):
            for index, row in order.rows(step):
                drawn[index].append(row)
        counts = order.draws_of_sources(steps)
        sums = [before + count for before, count in zip(sums, counts, strict=True)]
    assert [len(rows) for rows in drawn] == sums
    for of_source, rows in zip(made, drawn, strict=True):
        size = of_source.sequences
        for start in range(0, len(rows), size):
            epoch = rows[start : start + size]
            assert len(set(epoch)) == len(epoch)
        for start in range(0, len(rows) - size + 1, size):
            assert sorted(rows[start : start + size]) == list(range(size))


@settings(max_examples=30, deadline=None)
@given(sources=SOURCES, phases=PHASES, batch=st.integers(1, 64), seed=st.integers(0, 2**31))
def test_every_phase_has_its_own_replay_fraction_in_tokens(sources, phases, batch: int, seed: int) -> None:
    made = [
        source(f"{side}-{index}", *numbers)
        for side, listed in zip(("domain", "general"), sources, strict=True)
        for index, numbers in enumerate(listed)
    ]
    steps = -(-4000 // batch)
    for (_, replay), order in zip(phases, phases_in_turn(made, phases, batch=batch, seed=seed), strict=True):
        assert abs(order.totals(steps).replay_fraction - replay) < 0.001


@pytest.mark.torch
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("resumed_at", [0, 3, 11])
def test_a_later_phase_reads_the_same_rows_from_any_step_on_any_number_of_ranks(
    world_size: int, resumed_at: int
) -> None:
    from dapt_trainer.training.batch_order import BatchOrder

    made = (source("domain-0", 70), source("domain-1", 31, weight=2.0), source("general-0", 13))
    phases = [(9, 0.1), (4, 0.5)]
    whole = [
        row for step in range(12) for row in mixture(*made, replay=0.3, batch=8, earlier=phases).rows(step)
    ]
    resumed = mixture(*made, replay=0.3, batch=8, earlier=phases)
    slots: list[int] = []
    orders = [
        iter(BatchOrder(12, 8, 2, rank, world_size, first_step=resumed_at)) for rank in range(world_size)
    ]
    for micro_batches in zip(*orders, strict=True):
        slots += [slot for micro_batch in micro_batches for slot in micro_batch]
    assert [resumed.rows(slot // 8)[slot % 8] for slot in slots] == whole[resumed_at * 8 :]


def test_totals_of_a_later_phase_count_its_own_rows() -> None:
    used = [np.arange(100, 200, dtype=np.int32), np.arange(1, 51, dtype=np.int32)]
    made = [
        MixtureSource("domain-0", "domain", 1.0, 100, int(used[0].sum())),
        MixtureSource("general-0", "general", 1.0, 50, int(used[1].sum())),
    ]
    order = mixture(*made, replay=0.3, batch=7, earlier=[(21, 0.05)])
    tokens, draws = Counter[str](), Counter[str]()
    for step in range(33):
        for index, row in order.rows(step):
            tokens[made[index].name] += int(used[index][row])
            draws[made[index].name] += 1
    totals = order.totals(33, used)
    assert dict(totals.tokens_by_source) == dict(tokens)
    assert dict(totals.epochs_by_source) == {one.name: draws[one.name] / one.sequences for one in made}


def test_a_phase_of_no_steps_changes_nothing() -> None:
    made = (source("domain-0", 100), source("general-0", 50))
    alone, after = mixture(*made), mixture(*made, earlier=[(0, 0.4)])
    assert [alone.rows(step) for step in range(5)] == [after.rows(step) for step in range(5)]
    assert alone.rows(0) != mixture(*made, earlier=[(1, 0.05)]).rows(0)
