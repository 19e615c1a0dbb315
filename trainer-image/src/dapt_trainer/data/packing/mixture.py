"""Computes the training order as a pure function: which row of which source is read as which sequence of which step.

Slot n = step x global batch + i is the i-th sequence of a step, whatever the world size. Three choices lead from a slot
to a row. Each is computed from the slot alone, so that a resume at any step on any number of ranks continues with the
very next sequence:

1. Side. With q the share of general sequences, G(n) = floor(n q + 1/2) slots before n are general; slot n is general
   when G(n + 1) > G(n). In any window the number of general slots is within one of its share (Bresenham's line).
   q follows from the replay fraction r, a share of TOKENS, and the mean fill f of the sides' rows:
   q = (r / f_general) / (r / f_general + (1 - r) / f_domain).
2. Source within the side, by the same rule as a chain: the first source against the rest, the second against the rest
   of that, and so on. Shares are weight x sequences.
3. Row within the source: draw k of a source is row P_epoch(k mod rows) in epoch k // rows, where P_epoch is a
   pseudo-random permutation (a four-round Feistel network over the next power of four, repeated until the result lies
   inside the range; Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"), so no row appears twice in an
   epoch.

A later attempt starts from a checkpoint of an earlier one: 1 and 2 start again with its own replay fraction, and the
draws of each source continue after those of the earlier phases. The number of those draws follows from the steps and
replay fractions of the phases alone, so the order stays a pure function, and over all phases no row appears twice in an
epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from dapt_contract.measure import Side
from dapt_contract.stages.pretrain import MixturePhase
from dapt_trainer.data.packing.shards import Shard
from dapt_trainer.errors import InputError

Slots = npt.NDArray[np.int64]
_SCALE_BITS = 40
"""Shares are fractions of 2^40: exact integer arithmetic, the same on every machine."""
_REMEMBERED_STEPS = 4


@dataclass(frozen=True)
class MixtureSource:
    """Describes a source for the mixture."""

    name: str
    side: Side
    weight: float
    sequences: int
    filled_positions: int
    """Positions that hold a token, over all its sequences."""


@dataclass(frozen=True)
class MixtureTotals:
    """Sums up what a number of steps reads."""

    tokens_by_source: Mapping[str, int]
    epochs_by_source: Mapping[str, float]
    replay_fraction: float
    """Realised share of general tokens."""

    @property
    def tokens(self) -> int:
        """Return the tokens of all sources."""
        return sum(self.tokens_by_source.values())


class Mixture:
    """Maps steps to rows.

    Args:
        sources: in the manifest's order; those without sequences are never read.
        seed: of the order.
        replay_fraction: share of general tokens, 0 to 1.
        global_batch_size: sequences of one optimizer step over all ranks; the same in the earlier phases.
        earlier_phases: what was read before the first step, with the same seed and sources, oldest first.

    Raises:
        InputError: a side that must be read has no sequence.
    """

    def __init__(
        self,
        sources: Sequence[MixtureSource],
        *,
        seed: int,
        replay_fraction: float,
        global_batch_size: int,
        earlier_phases: Sequence[MixturePhase] = (),
    ) -> None:
        self._sources = tuple(sources)
        self._seed = seed
        self._batch = global_batch_size
        self._members = {
            side: [i for i, source in enumerate(self._sources) if source.side == side and source.sequences]
            for side in ("domain", "general")
        }
        self._chains = {side: self._chain(members) for side, members in self._members.items()}
        self._first_draws = [0] * len(self._sources)
        for phase in earlier_phases:
            counts = self._counts(phase.steps, self._general_share_of(phase.replay_fraction))
            self._first_draws = [
                before + count for before, count in zip(self._first_draws, counts, strict=True)
            ]
        self._general_share = self._general_share_of(replay_fraction)
        self._newest: dict[int, list[tuple[int, int]]] = {}

    def _general_share_of(self, replay_fraction: float) -> int:
        """Return q for a replay fraction, in units of 2^-40."""
        needed = {"domain": 1.0 - replay_fraction, "general": replay_fraction}
        missing = [side for side, share in needed.items() if share > 0 and not self._members[side]]
        if missing:
            raise InputError(
                *(
                    f"spec.corpus.{side}: no sequence is left for training, but {needed[side]:.2f} of the tokens "
                    "should come from it; add text, or change spec.corpus.replayFraction"
                    for side in missing
                )
            )
        shares = {side: share / self._mean_fill(side) if share > 0 else 0.0 for side, share in needed.items()}
        return _scaled(shares["general"] / (shares["general"] + shares["domain"]))

    @classmethod
    def of_shards(
        cls,
        shards: Sequence[Shard],
        *,
        seed: int,
        replay_fraction: float,
        global_batch_size: int,
        earlier_phases: Sequence[MixturePhase] = (),
    ) -> Mixture:
        """Return the mixture of opened shards."""
        sources = [
            MixtureSource(
                shard.name, shard.side, shard.weight, len(shard), int(shard.used.sum(dtype=np.int64))
            )
            for shard in shards
        ]
        return cls(
            sources,
            seed=seed,
            replay_fraction=replay_fraction,
            global_batch_size=global_batch_size,
            earlier_phases=earlier_phases,
        )

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Return (index of the source, row) for each sequence of a step, in the order in which ranks slice them.

        The newest few are kept: the thread that reads rows asks for a step first, and then the training, which counts
        its tokens. Both may ask at once, so what is kept is replaced and never changed.
        """
        rows = self._newest.get(step)
        if rows is None:
            rows = self._compute_rows(step)
            kept = [*self._newest.items(), (step, rows)]
            self._newest = dict(kept[-_REMEMBERED_STEPS:])
        return rows

    def _compute_rows(self, step: int) -> list[tuple[int, int]]:
        slots = np.arange(step * self._batch, (step + 1) * self._batch, dtype=np.int64)
        sources, draws = self._draws(slots)
        rows = np.empty_like(draws)
        for index in np.unique(sources).tolist():
            is_of_source = sources == index
            rows[is_of_source] = self._rows_of_draws(index, draws[is_of_source] + self._first_draws[index])
        return list(zip(sources.tolist(), rows.tolist(), strict=True))

    def totals(self, steps: int, used_by_row: Sequence[npt.NDArray[np.int32]] | None = None) -> MixtureTotals:
        """Return what the first `steps` steps read; earlier phases are not counted.

        Args:
            steps: optimizer steps from the start of this phase.
            used_by_row: each source's filled positions by row, for exact token counts; None: by the mean fill.
        """
        tokens, epochs = {}, {}
        for index, (source, count) in enumerate(
            zip(self._sources, self.draws_of_sources(steps), strict=True)
        ):
            first = self._first_draws[index]
            used = None if used_by_row is None else used_by_row[index]
            tokens[source.name] = self._tokens(index, first + count, used) - self._tokens(index, first, used)
            epochs[source.name] = count / source.sequences if source.sequences else 0.0
        general = sum(tokens[source.name] for source in self._sources if source.side == "general")
        return MixtureTotals(tokens, epochs, general / max(1, sum(tokens.values())))

    def _tokens(self, index: int, draws: int, used_by_row: npt.NDArray[np.int32] | None) -> int:
        """Return the tokens of a source's first `draws` draws."""
        source = self._sources[index]
        if not source.sequences:
            return 0
        epochs, rest = divmod(draws, source.sequences)
        if used_by_row is None:
            return epochs * source.filled_positions + round(rest * source.filled_positions / source.sequences)
        partial = self._rows_of_draws(index, np.arange(draws - rest, draws, dtype=np.int64))
        return epochs * source.filled_positions + int(used_by_row[partial].sum(dtype=np.int64))

    def draws_of_sources(self, steps: int) -> list[int]:
        """Return how many sequences of each source the first `steps` steps read, without earlier phases."""
        return self._counts(steps, self._general_share)

    def _counts(self, steps: int, general_share: int) -> list[int]:
        slots = steps * self._batch
        general = (slots * general_share + _HALF) >> _SCALE_BITS
        counts = [0] * len(self._sources)
        for side, remaining in (("domain", slots - general), ("general", general)):
            for index, share in self._chains[side]:
                counts[index] = (remaining * share + _HALF) >> _SCALE_BITS
                remaining -= counts[index]
        return counts

    def _mean_fill(self, side: str) -> float:
        members = [self._sources[i] for i in self._members[side]]
        weights = [source.weight * source.sequences for source in members]
        fills = [source.filled_positions / source.sequences for source in members]
        return sum(w * f for w, f in zip(weights, fills, strict=True)) / sum(weights)

    def _chain(self, members: list[int]) -> list[tuple[int, int]]:
        """Return (source, its share of what the sources before it leave over) in units of 2^-40.

        The share of the last source is 1.
        """
        weights = [self._sources[i].weight * self._sources[i].sequences for i in members]
        remaining = [math.fsum(weights[k:]) for k in range(len(weights))]
        return [(i, _scaled(w / rest)) for i, w, rest in zip(members, weights, remaining, strict=True)]

    def _draws(self, slots: Slots) -> tuple[Slots, Slots]:
        """Return the source of each slot, and the number of its draw."""
        general_before = _rounded_share(slots, self._general_share)
        is_general = _rounded_share(slots + 1, self._general_share) > general_before
        sources = np.full(len(slots), -1, dtype=np.int64)
        draws = np.where(is_general, general_before, slots - general_before)
        for side, is_of_side in (("domain", ~is_general), ("general", is_general)):
            is_open = is_of_side.copy()
            for index, share in self._chains[side]:
                taken_before = _rounded_share(draws, share)
                is_taken = is_open & (_rounded_share(draws + 1, share) > taken_before)
                sources[is_taken] = index
                # What this source does not take is renumbered for the sources after it in the chain.
                draws = np.where(is_taken, taken_before, np.where(is_open, draws - taken_before, draws))
                is_open &= ~is_taken
        return sources, draws

    def _rows_of_draws(self, index: int, draws: Slots) -> Slots:
        rows = self._sources[index].sequences
        epochs = draws // rows if rows else draws
        result = np.empty_like(draws)
        for epoch in np.unique(epochs).tolist():
            is_of_epoch = epochs == epoch
            result[is_of_epoch] = permuted(
                draws[is_of_epoch] - epoch * rows, rows, (self._seed, index, epoch)
            )
        return result


_HALF = 1 << (_SCALE_BITS - 1)
_LOW_BITS = 20


def _scaled(share: float) -> int:
    # A fraction holds a float exactly, so nothing is rounded before the end.
    return round(Fraction(share) * (1 << _SCALE_BITS))


def _rounded_share(slots: Slots, share: int) -> Slots:
    """Return floor(n share + 1/2) for each n below 2^42, in 64 bits: the product would overflow, so n is split."""
    high, low = slots >> _LOW_BITS, slots & ((1 << _LOW_BITS) - 1)
    high_product = high * share  # below 2^22 x 2^40
    carried = (high_product & ((1 << _LOW_BITS) - 1)) << _LOW_BITS
    return (high_product >> (_SCALE_BITS - _LOW_BITS)) + ((carried + low * share + _HALF) >> _SCALE_BITS)


def permuted(indices: Slots, size: int, key: Sequence[int]) -> Slots:
    """Return the images of `indices` (each in 0 .. size - 1) under the permutation of that range that `key` names."""
    if size <= 1:
        return indices.copy()
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    keys = [_round_key(key, number) for number in range(4)]
    result = indices.astype(np.uint64)
    is_outside = np.ones(len(result), dtype=bool)
    # The network permutes the next power of four; values outside the range are mapped again until they fall inside.
    while is_outside.any():
        values = result[is_outside]
        left, right = values >> shift, values & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right + round_key) & mask)
        result[is_outside] = (left << shift) | right
        is_outside &= result >= np.uint64(size)
    return result.astype(np.int64)


def _round_key(key: Sequence[int], number: int) -> np.uint64:
    state = np.array([number + 1], dtype=np.uint64)
    for part in key:
        state = _mixed(state ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return np.uint64(state[0])


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply the finalizer of splitmix64 (Steele, Lea, Flood 2014), which wraps around at 2^64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
