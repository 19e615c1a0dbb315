"""Do the runs of the experiments that are missing, judge, and write science/results/ and docs/science.md.

    python -m science [NAMES] [--seeds 3] [--workers 2] [--minutes 110]
    python -m science --page
    python -m science --sample

Each run is kept as soon as it is done, so that an interrupted call goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from science import page, store
from science.experiments import EXPERIMENTS, Experiment
from science.experiments.common import SEEDS

DOCS = Path(__file__).parent.parent / "docs"


def main() -> int:
    """0 when every asked run is done, whatever the verdicts are; 3 when time ended before."""
    parser = argparse.ArgumentParser(prog="python -m science", description=__doc__.splitlines()[0])
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(by_name)}; default: all")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    parser.add_argument("--workers", type=int, default=2, help="threads, each with one run on one core")
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after so long")
    parser.add_argument("--page", action="store_true", help="write docs/science.md from the results alone")
    parser.add_argument("--sample", action="store_true", help="one short run of each kind on a tiny bed")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(by_name))
    if unknown:
        parser.error(f"unknown experiment {', '.join(unknown)}; there are {', '.join(by_name)}")
    if options.sample:
        from science import sample

        print(*sample.run(options.workers, say), sep="\n")
        return 0
    chosen = [by_name[name] for name in options.names or by_name]
    finished = options.page or _run(chosen, SEEDS[: options.seeds], options.workers, options.minutes)
    page.write(store.RESULTS, DOCS)
    for experiment in chosen:
        for verdict in page.outcome_of(store.RESULTS, experiment).verdicts:
            print(verdict.line, flush=True)
    return 0 if finished else 3


def _run(chosen: list[Experiment], seeds: tuple[int, ...], workers: int, minutes: float | None) -> bool:
    """Whether all is done; the results are written in any case."""
    from science import campaign
    from science.base import BaseSettings

    ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    world = campaign.open_all(BaseSettings(), say)
    wanted = [item for experiment in chosen for item in experiment.runs(seeds)]
    keys = campaign.run_missing(world, wanted, workers=workers, ends=lambda: time.monotonic() > ends, say=say)
    for experiment in chosen:
        of_all = experiment.runs(SEEDS)
        records = campaign.records_of(campaign.keys_of(world, of_all), of_all)
        store.write_results(store.RESULTS, experiment.name, campaign.facts_of(world), records)
    return all(store.cached(key) is not None for key in keys.values())


def say(text: str) -> None:
    """A line for whoever watches; verdicts alone go to standard output."""
    print(f"# {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
