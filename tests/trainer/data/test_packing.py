"""Best-fit packing: nothing lost, nothing twice, rows full, few documents cut."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapt_trainer.data.packing.best_fit import Packer, Piece


def pack(
    lengths: list[int], sequence_length: int, window_tokens: int = 1
) -> tuple[Packer, list[list[Piece]]]:
    packer = Packer(sequence_length, window_tokens=window_tokens)
    return packer, list(packer.pack(enumerate(lengths)))


def once(packer: Packer, rows: list[list[Piece]], lengths: list[int]) -> None:
    """Every token stands in one piece; what stands twice is the repeated tokens."""
    times: Counter[tuple[int, int]] = Counter()
    for row in rows:
        for piece in row:
            times.update(
                (piece.document, position) for position in range(piece.start, piece.start + piece.length)
            )
    expected = {(document, position) for document, length in enumerate(lengths) for position in range(length)}
    assert set(times) == expected
    assert max(times.values(), default=1) <= 2
    assert sum(times.values()) - len(expected) == packer.repeated_tokens


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=120),
    sequence_length=st.integers(4, 256),
)
def test_every_token_of_every_document_is_packed_once(lengths: list[int], sequence_length: int) -> None:
    packer, rows = pack(lengths, sequence_length)
    once(packer, rows, lengths)
    assert all(sum(piece.length for piece in row) <= sequence_length for row in rows)
    assert all(row for row in rows)
    pieces = Counter(piece.document for row in rows for piece in row)
    assert packer.pieces == sum(pieces.values())
    filled = sum(piece.length for row in rows for piece in row)
    assert packer.fill_fraction == pytest.approx(filled / (len(rows) * sequence_length))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), sequence_length=st.integers(16, 200), mean=st.integers(5, 400))
def test_many_windows_fill_as_well_as_one(seed: int, sequence_length: int, mean: int) -> None:
    """The window is at least 256 rows: enough documents for several."""
    chooser = random.Random(seed)
    lengths = [1 + int(chooser.expovariate(1 / mean)) for _ in range(700 * sequence_length // mean)]
    packer, rows = pack(lengths, sequence_length)
    once(packer, rows, lengths)
    assert packer.fill_fraction >= 0.995


@pytest.mark.parametrize(
    ("lengths", "sequence_length"),
    [
        ([20 + 7 * n % 90 for n in range(300)], 512),  # a small corpus of short documents
        ([300] * 400, 512),  # no two documents fit into a row
        ([513] * 100, 512),  # one token too long
        ([100_000], 512),
        ([1] * 5_000, 512),
    ],
)
def test_rows_are_filled_to_the_bar(lengths: list[int], sequence_length: int) -> None:
    packer, rows = pack(lengths, sequence_length)
    once(packer, rows, lengths)
    assert packer.fill_fraction >= 0.995


def test_documents_that_fit_are_not_cut() -> None:
    chooser = random.Random(3)
    lengths = [chooser.randint(10, 400) for _ in range(4000)]
    packer, _ = pack(lengths, 1024, window_tokens=10**9)
    assert packer.cut_documents == 0
    assert packer.fill_fraction >= 0.995


def test_a_long_document_is_cut_into_whole_rows_and_a_rest() -> None:
    packer, rows = pack([25, 3], 10)
    assert rows == [
        [Piece(0, 0, 10)],
        [Piece(0, 10, 10)],
        [Piece(0, 20, 5), Piece(1, 0, 3), Piece(0, 0, 2)],  # the last two positions repeat a beginning
    ]
    assert packer.repeated_tokens == 2
    assert packer.cut_documents == 1


def test_a_source_smaller_than_a_row_is_not_repeated_into_itself() -> None:
    packer, rows = pack([30, 20], 512)
    assert rows == [[Piece(0, 0, 30), Piece(1, 0, 20)]]
    assert packer.repeated_tokens == 0
    assert packer.fill_fraction == pytest.approx(50 / 512)


def test_an_empty_source_has_no_rows() -> None:
    packer, rows = pack([], 512)
    assert rows == []
    assert packer.fill_fraction == 1.0
