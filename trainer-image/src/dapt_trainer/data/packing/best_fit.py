"""Packs documents into sequences of equal length by best fit, so that few documents are cut.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling": documents longer than a sequence are cut into whole
sequences and a rest; everything else goes, longest first, into the fullest row that still has enough free positions.
A bit set of the numbers of free positions finds that row without a search.

Best fit leaves gaps where no document fits. A share of gaps above `MAX_GAP_FRACTION` is closed by cutting: the emptiest
row is dissolved, and its documents fill the gaps of the others. What is left after that is less than one row, and it is
filled with the beginnings of other documents, each repeated at most once. That happens only in small sources: in a
large one the gaps of less than one row are below `MAX_GAP_FRACTION`.

Large sources are packed in windows, so that memory is bounded and reading stays local; rows that a window leaves with
gaps are unpacked into the next window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

MAX_GAP_FRACTION = 0.004
"""Share of positions without a token that needs no closing."""
WINDOW_TOKENS = 8_000_000
_MIN_WINDOW_ROWS = 256
_MAX_CARRIED_FRACTION = 0.25


class Piece(NamedTuple):
    """Names a run of tokens of one document."""

    document: int
    start: int
    length: int


Row = list[Piece]


class Packer:
    """Packs one source; its counters are final when `pack` is exhausted."""

    def __init__(self, sequence_length: int, *, window_tokens: int = WINDOW_TOKENS) -> None:
        self._length = sequence_length
        self._window_tokens = max(window_tokens, _MIN_WINDOW_ROWS * sequence_length)
        self._cut: set[int] = set()
        self._positions = 0
        self._gaps = 0
        self.pieces = 0
        self.repeated_tokens = 0
        """Tokens that appear a second time to fill the last rows."""

    @property
    def cut_documents(self) -> int:
        """Return how many documents are in more than one piece."""
        return len(self._cut)

    @property
    def fill_fraction(self) -> float:
        """Return the share of positions that hold a token."""
        return 1.0 - self._gaps / self._positions if self._positions else 1.0

    def pack(self, lengths: Iterable[tuple[int, int]]) -> Iterator[Row]:
        """Yield rows of pieces; each token of each document is in exactly one, except for repeated tokens.

        Args:
            lengths: (number of a document, number of its tokens) in reading order; no document is empty.
        """
        window: list[Piece] = []
        size = 0
        for document, length in lengths:
            if length > self._length:
                self._cut.add(document)
            for start in range(0, length, self._length):
                window.append(Piece(document, start, min(self._length, length - start)))
            size += length
            if size >= self._window_tokens:
                rows = self._best_fit(window)
                window = rows.set_aside(_MAX_CARRIED_FRACTION)
                # Carrying more into the next window would unbound it: close the gaps by cutting instead.
                if rows.has_too_many_gaps():
                    rows.close_gaps(self._cut)
                    window = rows.set_aside(1.0)
                size = sum(piece.length for piece in window)
                yield from self._count(rows)
        rows = self._best_fit(window)
        rows.close_gaps(self._cut)
        if self._gaps + rows.gaps > MAX_GAP_FRACTION * (self._positions + rows.positions):
            self.repeated_tokens += rows.fill_with_repeats()
        yield from self._count(rows)

    def _best_fit(self, pieces: list[Piece]) -> _Rows:
        rows = _Rows(self._length)
        # The sort is stable: pieces of equal length keep their order, so that the packing is reproducible.
        for piece in sorted(pieces, key=lambda piece: -piece.length):
            rows.add(piece)
        return rows

    def _count(self, rows: _Rows) -> Iterator[Row]:
        self._positions += rows.positions
        self._gaps += rows.gaps
        content = rows.content()
        self.pieces += sum(len(row) for row in content)
        yield from content


def best_fit(lengths: Sequence[int], sequence_length: int) -> list[list[int]]:
    """Return rows of the numbers of texts, packed best-fit, longest first; no text is cut or repeated.

    Args:
        lengths: tokens of each text, none above the sequence length.
        sequence_length: positions of a row.
    """
    rows = _Rows(sequence_length)
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        rows.add(Piece(number, 0, lengths[number]))
    return [[piece.document for piece in row] for row in rows.content()]


class _Rows:
    """Holds open rows and finds them by their number of free positions."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._rows: list[Row] = []
        self._free: list[int] = []
        """Free positions of each row."""
        self._rows_by_free: dict[int, list[int]] = {}
        self._free_sizes = 0
        """Bit set: bit n is set when `_rows_by_free` has a row with n free positions, n > 0."""
        self._dropped = 0
        self.gaps = 0
        """Positions without a token."""

    @property
    def positions(self) -> int:
        """Return the positions of all rows."""
        return (len(self._rows) - self._dropped) * self._length

    def content(self) -> list[Row]:
        """Return the rows in the order in which they were opened."""
        return [row for row in self._rows if row]

    def has_too_many_gaps(self) -> bool:
        """Return whether more than `MAX_GAP_FRACTION` of the positions hold no token."""
        return self.gaps > MAX_GAP_FRACTION * self.positions

    def add(self, piece: Piece) -> None:
        """Put a piece no longer than a row into the fullest row that it fits into, or into a new one."""
        fitting = self._free_sizes >> piece.length
        if fitting:
            # The lowest set bit is the smallest number of free positions that is enough.
            row = self._take((fitting & -fitting).bit_length() - 1 + piece.length)
        else:
            row = len(self._rows)
            self._rows.append([])
            self._free.append(self._length)
            self.gaps += self._length
        self._put(row, piece)

    def set_aside(self, max_fraction: float) -> list[Piece]:
        """Unpack the emptiest rows and return their pieces, so that the other rows are full enough.

        Nothing is unpacked when that would take more than `max_fraction` of the tokens.
        """
        order = sorted(
            (row for row in range(len(self._rows)) if self._rows[row]), key=lambda row: -self._free[row]
        )
        gaps, count, tokens = self.gaps, 0, 0
        while gaps > MAX_GAP_FRACTION * (len(order) - count) * self._length:
            gaps -= self._free[order[count]]
            tokens += self._length - self._free[order[count]]
            count += 1
        if tokens > max_fraction * (self.positions - self.gaps):
            return []
        carried = [piece for _ in range(count) for piece in self._drop_emptiest()]
        return sorted(carried)

    def close_gaps(self, cut: set[int]) -> None:
        """Dissolve the emptiest rows into the gaps of the others until few gaps are left.

        Args:
            cut: gets the documents that are cut.
        """
        while self.has_too_many_gaps():
            free = self._free_sizes.bit_length() - 1
            if self.gaps - free < self._length - free:
                return  # the gaps of the other rows are too few for the tokens of the emptiest one
            for piece in self._drop_emptiest():
                while not self._free_sizes >> piece.length:
                    # No gap takes the whole piece: the largest leaves the fewest further cuts.
                    largest = self._free_sizes.bit_length() - 1
                    cut.add(piece.document)
                    self._put(self._take(largest), piece._replace(length=largest))
                    piece = Piece(piece.document, piece.start + largest, piece.length - largest)
                self.add(piece)

    def fill_with_repeats(self) -> int:
        """Fill the gaps with the beginnings of documents from other rows; return the number of repeated tokens."""
        repeated = 0
        candidates = [
            (row, piece) for row, pieces in enumerate(self._rows) for piece in pieces if piece.start == 0
        ]
        while candidates and self._free_sizes:
            free = self._free_sizes.bit_length() - 1
            row = self._take(free)
            unused = []
            for home, piece in candidates:
                # Not into its own row, which would then hold the same text twice.
                if free and home != row:
                    length = min(free, piece.length)
                    self._rows[row].append(piece._replace(length=length))
                    free -= length
                    repeated += length
                else:
                    unused.append((home, piece))
            self._free[row] = free
            candidates = unused
        self.gaps -= repeated
        return repeated

    def _put(self, row: int, piece: Piece) -> None:
        """Append a piece to a row that `_take` returned; list the row again when it has free positions left."""
        self._rows[row].append(piece)
        free = self._free[row] - piece.length
        self._free[row] = free
        self.gaps -= piece.length
        if free:
            self._rows_by_free.setdefault(free, []).append(row)
            self._free_sizes |= 1 << free

    def _take(self, free: int) -> int:
        """Return a row with this number of free positions and remove it from the lists."""
        rows = self._rows_by_free[free]
        row = rows.pop()
        if not rows:
            self._free_sizes ^= 1 << free
        return row

    def _drop_emptiest(self) -> Row:
        """Remove the row with the most free positions and return its pieces."""
        row = self._take(self._free_sizes.bit_length() - 1)
        pieces, self._rows[row] = self._rows[row], []
        self.gaps -= self._free[row]
        self._dropped += 1
        return pieces
