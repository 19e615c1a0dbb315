"""Best-fit packing: documents into sequences of equal length, few of them cut.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling": documents longer than a sequence are cut into whole
sequences and a rest; everything else goes, longest first, into the fullest row that still has room. Finding that row
takes one look at a bit set of the rooms there are.

Best fit leaves gaps where no document fits. A share of gaps above `MAX_GAP_FRACTION` is closed by cutting: the emptiest
row is dissolved, and its documents fill the gaps of the others. What is left then is less than one row, and it is
topped up with the beginnings of other documents, each repeated at most once (this happens in small sources only:
elsewhere less than a row is no share at all).

Large sources are packed in windows, so that memory is bounded and reading stays local; rows that a window leaves with
gaps are unpacked into the next window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

MAX_GAP_FRACTION = 0.004
"""Share of positions without a token that is left alone; the bar is 0.005."""
WINDOW_TOKENS = 8_000_000
_MIN_WINDOW_ROWS = 256
_MAX_CARRIED_FRACTION = 0.25


class Piece(NamedTuple):
    """A run of tokens of one document."""

    document: int
    start: int
    length: int


Row = list[Piece]


class Packer:
    """Packs one source; the counters are final when `pack` is exhausted."""

    def __init__(self, sequence_length: int, *, window_tokens: int = WINDOW_TOKENS) -> None:
        self._length = sequence_length
        self._window_tokens = max(window_tokens, _MIN_WINDOW_ROWS * sequence_length)
        self._cut: set[int] = set()
        self._positions = 0
        self._gaps = 0
        self.pieces = 0
        self.repeated_tokens = 0
        """Of pieces that stand a second time, to fill the last rows."""

    @property
    def cut_documents(self) -> int:
        """Documents that stand in more than one piece."""
        return len(self._cut)

    @property
    def fill_fraction(self) -> float:
        """Share of positions that carry a token."""
        return 1.0 - self._gaps / self._positions if self._positions else 1.0

    def pack(self, lengths: Iterable[tuple[int, int]]) -> Iterator[Row]:
        """Rows of pieces; each token of each document stands in exactly one, repeated tokens apart.

        Args:
            lengths: (number of a document, its tokens) in reading order; no document is empty.
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
                rows = self._filled(window)
                window = rows.set_aside(_MAX_CARRIED_FRACTION)
                if rows.too_empty():
                    rows.close_gaps(self._cut)
                    window = rows.set_aside(1.0)
                size = sum(piece.length for piece in window)
                yield from self._counted(rows)
        rows = self._filled(window)
        rows.close_gaps(self._cut)
        if self._gaps + rows.gaps > MAX_GAP_FRACTION * (self._positions + rows.positions):
            self.repeated_tokens += rows.top_up()
        yield from self._counted(rows)

    def _filled(self, pieces: list[Piece]) -> _Rows:
        rows = _Rows(self._length)
        for piece in sorted(
            pieces, key=lambda piece: -piece.length
        ):  # stable: equal lengths keep their order
            rows.add(piece)
        return rows

    def _counted(self, rows: _Rows) -> Iterator[Row]:
        self._positions += rows.positions
        self._gaps += rows.gaps
        content = rows.content()
        self.pieces += sum(len(row) for row in content)
        yield from content


def best_fit(lengths: Sequence[int], sequence_length: int) -> list[list[int]]:
    """Rows of the numbers of texts that are packed whole, none cut and none repeated; best-fit, longest first.

    Args:
        lengths: tokens of each text, none above the sequence length.
        sequence_length: most tokens a row.
    """
    rows = _Rows(sequence_length)
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        rows.add(Piece(number, 0, lengths[number]))
    return [[piece.document for piece in row] for row in rows.content()]


class _Rows:
    """Open rows, found by their room."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._rows: list[Row] = []
        self._room: list[int] = []
        self._by_room: dict[int, list[int]] = {}
        self._rooms = 0
        """Bit r is set when `_by_room` has a row with room r; rows without room are not in it."""
        self._dropped = 0
        self.gaps = 0
        """Positions without a token."""

    @property
    def positions(self) -> int:
        """Of all rows."""
        return (len(self._rows) - self._dropped) * self._length

    def content(self) -> list[Row]:
        """The rows in the order in which they were opened."""
        return [row for row in self._rows if row]

    def too_empty(self) -> bool:
        """Whether the gaps are more than is left alone."""
        return self.gaps > MAX_GAP_FRACTION * self.positions

    def add(self, piece: Piece) -> None:
        """Put a piece no longer than a row into the fullest row that has room for it, or into a new one."""
        fitting = self._rooms >> piece.length
        if fitting:
            row = self._take((fitting & -fitting).bit_length() - 1 + piece.length)
        else:
            row = len(self._rows)
            self._rows.append([])
            self._room.append(self._length)
            self.gaps += self._length
        self._put(row, piece)

    def set_aside(self, most: float) -> list[Piece]:
        """Unpack the emptiest rows, so that the others are full enough.

        None are when that takes more than this share of the tokens.
        """
        order = sorted(
            (row for row in range(len(self._rows)) if self._rows[row]), key=lambda row: -self._room[row]
        )
        gaps, count, tokens = self.gaps, 0, 0
        while gaps > MAX_GAP_FRACTION * (len(order) - count) * self._length:
            gaps -= self._room[order[count]]
            tokens += self._length - self._room[order[count]]
            count += 1
        if tokens > most * (self.positions - self.gaps):
            return []
        carried = [piece for _ in range(count) for piece in self._drop_emptiest()]
        return sorted(carried)

    def close_gaps(self, cut: set[int]) -> None:
        """Dissolve the emptiest row into the gaps of the others until few are left; note the documents that are cut."""
        while self.too_empty():
            room = self._rooms.bit_length() - 1
            if self.gaps - room < self._length - room:
                return  # all rows but part of one are full
            for piece in self._drop_emptiest():
                while not self._rooms >> piece.length:
                    largest = self._rooms.bit_length() - 1
                    cut.add(piece.document)
                    self._put(self._take(largest), piece._replace(length=largest))
                    piece = Piece(piece.document, piece.start + largest, piece.length - largest)
                self.add(piece)

    def top_up(self) -> int:
        """Fill the gaps with beginnings of documents from other rows; the tokens that stand twice now."""
        repeated = 0
        candidates = [
            (row, piece) for row, pieces in enumerate(self._rows) for piece in pieces if piece.start == 0
        ]
        while candidates and self._rooms:
            room = self._rooms.bit_length() - 1
            row = self._take(room)
            left = []
            for home, piece in candidates:
                if room and home != row:
                    taken = min(room, piece.length)
                    self._rows[row].append(piece._replace(length=taken))
                    room -= taken
                    repeated += taken
                else:
                    left.append((home, piece))
            self._room[row] = room
            candidates = left
        self.gaps -= repeated
        return repeated

    def _put(self, row: int, piece: Piece) -> None:
        """Append to a row that is in no list; it goes back into its list when it still has room."""
        self._rows[row].append(piece)
        room = self._room[row] - piece.length
        self._room[row] = room
        self.gaps -= piece.length
        if room:
            self._by_room.setdefault(room, []).append(row)
            self._rooms |= 1 << room

    def _take(self, room: int) -> int:
        rows = self._by_room[room]
        row = rows.pop()
        if not rows:
            self._rooms ^= 1 << room
        return row

    def _drop_emptiest(self) -> Row:
        row = self._take(self._rooms.bit_length() - 1)
        pieces, self._rows[row] = self._rows[row], []
        self.gaps -= self._room[row]
        self._dropped += 1
        return pieces
