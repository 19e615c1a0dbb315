"""The pieces of the campaign: which there are, in which order, which are missing, and how long the rest takes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from science import store

SEEDS: Final = (1, 2, 3)
DOMAINS: Final = ("clinical", "cloud")
METHODS: Final = ("lora", "full")
RECIPES: Final = ("plain", "rival", "dapt")
STEPS: Final = 64
SEQUENCES: Final = 4
SEQUENCE_TOKENS: Final = 256
TOKENS: Final = STEPS * SEQUENCES * SEQUENCE_TOKENS
"""Of every piece, replayed ones among them: what two cores train on in less than half an hour with all measures."""
ASSUMED_MINUTES: Final = {"lora": 15.0, "full": 25.0}
"""Until a piece of that method is recorded. From `make demo`, which trains on as many in a quarter of an hour."""
RESULTS: Final = store.RESULTS / "real"


@dataclass(frozen=True, order=True)
class Piece:
    """One adaptation: a domain, a method, a recipe and a seed, which also draws the held-out text."""

    seed: int
    domain: str
    method: str
    recipe: str

    @property
    def name(self) -> str:
        """Name of its run and of its record."""
        return f"{self.domain}-{self.method}-{self.recipe}-{self.seed}"


def all_pieces() -> tuple[Piece, ...]:
    """Return every piece. The recipes of a setting follow each other, so that what is there can be compared."""
    return tuple(
        Piece(seed, domain, method, recipe)
        for seed, method, domain, recipe in product(SEEDS, METHODS, DOMAINS, RECIPES)
    )


def record_path(results: Path, piece: Piece) -> Path:
    """Return the file of a piece's record."""
    return results / f"{piece.name}.json"


def missing(results: Path) -> tuple[Piece, ...]:
    """Return the pieces without a record, in their order."""
    return tuple(piece for piece in all_pieces() if not record_path(results, piece).is_file())


def recorded(results: Path) -> Mapping[Piece, Mapping[str, Any]]:
    """Return the records that there are, in the order of their pieces."""
    return dict(_read(results))


def _read(results: Path) -> Iterator[tuple[Piece, Mapping[str, Any]]]:
    for piece in all_pieces():
        path = record_path(results, piece)
        if path.is_file():
            yield piece, store.read_record(path)


def with_settings(piece: Piece, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with what it is a record of."""
    return {"settings": {**asdict(piece), "tokens": TOKENS}, **record}


def minutes_left(left: Sequence[Piece], records: Mapping[Piece, Mapping[str, Any]]) -> float:
    """Return how long the missing pieces take: each as the recorded ones of its method and recipe did on average."""
    return sum(_minutes(piece, records) for piece in left)


def _minutes(piece: Piece, records: Mapping[Piece, Mapping[str, Any]]) -> float:
    of_method = [
        (other.recipe, record["seconds"] / 60)
        for other, record in records.items()
        if other.method == piece.method
    ]
    alike = [minutes for recipe, minutes in of_method if recipe == piece.recipe]
    known = alike or [minutes for _, minutes in of_method]
    return statistics.fmean(known) if known else ASSUMED_MINUTES[piece.method]


def estimate(left: Sequence[Piece], records: Mapping[Piece, Mapping[str, Any]]) -> str:
    """Return what is left, in one line."""
    num_all = len(all_pieces())
    if not left:
        return f"all {num_all} runs are done"
    hours = minutes_left(left, records) / 60
    measured = sum(bool([other for other in records if other.method == piece.method]) for piece in left)
    basis = f"{measured} of them by recorded runs of their method" if measured else "by an assumption"
    return f"{len(left)} of {num_all} runs are left, about {hours:.1f} hours on two cores ({basis})"
