"""Run the missing pieces on a real model, one after the other, and write science/results/real/ and the page.

    python -m science.real [--minutes 120] [--pieces 3]
    python -m science.real --page
    python -m science.real --list

Each piece takes less than half an hour on two cores and is recorded when it is done; a piece that was interrupted
continues where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from science import store
from science.bed import cache_folder
from science.real import page, pieces

DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    """Return 0 when every piece is recorded, 3 when some are left, 1 when one has failed."""
    parser = argparse.ArgumentParser(prog="python -m science.real", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no piece after so long")
    parser.add_argument("--pieces", type=int, default=len(pieces.all_pieces()), help="do at most this number")
    parser.add_argument("--page", action="store_true", help="write the page from the records alone")
    parser.add_argument(
        "--list", action="store_true", help="name the pieces that are missing, and the time left"
    )
    options = parser.parse_args()
    results = pieces.RESULTS
    left = pieces.missing(results)
    say(pieces.estimate(left, pieces.recorded(results)))
    if options.list:
        print(*(piece.name for piece in left), sep="\n")
        return 0
    if not options.page and not _run(left[: options.pieces], results, options.minutes):
        return 1
    page.write(results, DOCS)
    return 0 if options.page or not pieces.missing(results) else 3


def _run(left: tuple[pieces.Piece, ...], results: Path, minutes: float) -> bool:
    """Return whether none has failed."""
    from science.real import runs, texts

    ends = time.monotonic() + 60 * minutes
    folder = cache_folder() / "real"
    data = texts.write(folder / "data")
    for piece in left:
        if time.monotonic() > ends:
            break
        say(f"{piece.name} begins")
        try:
            record = runs.perform(piece, folder / "runs", data)
        except runs.PieceError as error:
            say(str(error))
            return False
        store.write_record(pieces.record_path(results, piece), record)
        page.write(results, DOCS)
        say(f"{piece.name} took {record['seconds'] / 60:.0f} minutes")
        say(pieces.estimate(pieces.missing(results), pieces.recorded(results)))
    return True


def say(text: str) -> None:
    """Print a line for whoever watches."""
    print(f"# {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
