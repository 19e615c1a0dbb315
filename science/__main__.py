"""Do the runs of the experiments that are missing, judge, and write science/results/ and docs/science.md.

    python -m science [NAMES] [--seeds 3] [--workers 2] [--minutes 110] [--out FOLDER]
    python -m science --page

Each run is kept as soon as it is done, so that an interrupted call goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from science import page, store
from science.experiments import EXPERIMENTS, Experiment
from science.experiments.common import SEEDS, Records


def main() -> int:
    """0 when every asked run is done, whatever the verdicts are; 3 when time ended before."""
    parser = argparse.ArgumentParser(prog="python -m science", description=__doc__.splitlines()[0])
    names = [experiment.name for experiment in EXPERIMENTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    parser.add_argument("--workers", type=int, default=2, help="threads, each with one run; one core each")
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after so long")
    parser.add_argument("--page", action="store_true", help="write docs/science.md from the results alone")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"unknown experiment {', '.join(unknown)}; there are {', '.join(names)}")
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    chosen = [by_name[name] for name in options.names or names]
    finished = True
    if not options.page:
        finished = _run(chosen, SEEDS[: options.seeds], options.workers, options.minutes)
    page.write(store.RESULTS, Path(__file__).parent.parent / "docs")
    for experiment in chosen:
        for verdict in page.outcome_of(store.RESULTS, experiment).verdicts:
            print(verdict.line, flush=True)
    return 0 if finished else 3


def _run(chosen: list[Experiment], seeds: tuple[int, ...], workers: int, minutes: float | None) -> bool:
    import torch
    import transformers

    from science.base import BaseSettings, open_base, open_bed
    from science.kinds import key, perform
    from science.run import open_world

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    settings = BaseSettings()
    made = open_bed(settings.bed)
    world = open_world(settings, made, open_base(settings, made, _say))
    _say(f"bed {made.digests}, base {world.base_digest}: {world.readings}")
    wanted = {store.name_of(item): item for experiment in chosen for item in experiment.runs(seeds)}
    keys = {name: key(world, item) for name, item in wanted.items()}
    missing = [name for name in wanted if store.cached(keys[name]) is None]
    _say(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them done before")

    def do(name: str) -> None:
        if time.monotonic() > ends:
            return
        torch.set_num_threads(1)
        started = time.monotonic()
        store.keep(keys[name], perform(world, wanted[name]))
        _say(f"{time.monotonic() - started:.0f} s: {name}")

    with ThreadPoolExecutor(max_workers=workers) as pool:
        list(pool.map(do, missing))
    for experiment in chosen:
        records = [store.cached(key(world, item)) for item in experiment.runs(SEEDS)]
        store.write_results(
            store.RESULTS, experiment.name, _facts(world), [r for r in records if r is not None]
        )
    return all(store.cached(name) is not None for name in keys.values())


def _facts(world: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from science import corpus

    return {
        "bed": world.bed.digests,
        "base": world.base_digest,
        "base_losses": {name: asdict(losses) for name, losses in world.readings.items()},
        "base_steps": world.settings.steps,
        "parameters": sum(value.numel() for value in world.base.values()),
        "weak_domain": corpus.weak_version(),
        "tokens": {name: side.tokens for name, side in world.bed.sides.items()},
        "machine": store.machine(),
    }


def _say(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


__all__ = ["Records", "main"]

if __name__ == "__main__":
    sys.exit(main())
