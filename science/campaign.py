"""Do the runs that are missing, one after the other on each of a few threads; keep each as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from science import corpus, store
from science.base import BaseSettings, Texts, base_cpu_seconds, open_base, open_bed, own_texts
from science.kinds import key, perform
from science.losses import measure
from science.world import World, open_world

Say = Callable[[str], None]


def open_all(
    settings: BaseSettings, say: Say, *, texts: Callable[[], Texts] = own_texts, source: str | None = None
) -> World:
    """Bed and base from the cache, or made; one thread for each run."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    made = open_bed(settings.bed, texts, source)
    world = open_world(settings, made, open_base(settings, made, say))
    say(f"bed {made.digests}, base {world.base_digest}")
    return world


def run_missing(
    world: World, wanted: Sequence[Any], *, workers: int, ends: Callable[[], bool], say: Say
) -> dict[str, str]:
    """Key of each wanted run by its name; those that are not in the cache are done.

    Args:
        world: bed and base.
        wanted: settings; equal ones are one run.
        workers: threads.
        ends: asked before each run; True: begin no more.
        say: gets a line a run.
    """
    import torch

    settings = {store.name_of(item): item for item in wanted}
    keys = keys_of(world, wanted)
    missing = [name for name in settings if store.cached(keys[name]) is None]
    say(f"{len(settings)} runs, {len(settings) - len(missing)} of them done before")

    def do(name: str) -> None:
        if ends():
            return
        torch.set_num_threads(1)  # a setting of each thread
        started = time.monotonic()
        store.keep(keys[name], perform(world, settings[name]))
        say(f"{time.monotonic() - started:.0f} s: {name}")

    with ThreadPoolExecutor(max_workers=workers) as pool:
        list(pool.map(do, missing))
    return keys


def keys_of(world: World, wanted: Sequence[Any]) -> dict[str, str]:
    """Key of each run by its name."""
    return {name: key(world, item) for name, item in {store.name_of(item): item for item in wanted}.items()}


def facts_of(world: World) -> dict[str, Any]:
    """What the page says of bed, base and machine."""
    return {
        "bed": world.bed.digests,
        "base": world.base_digest,
        "base_losses": {name: asdict(losses) for name, losses in world.readings.items()},
        "base_steps": world.settings.steps,
        "parameters": sum(value.numel() for value in world.base.values()),
        "weak_domain": corpus.weak_version(),
        "tokens": {name: side.tokens for name, side in world.bed.sides.items()},
        "machine": store.machine(),
        "measure_cpu_seconds": _measure_cpu_seconds(world),
        "base_cpu_seconds": base_cpu_seconds(world.settings, world.bed),
    }


def _measure_cpu_seconds(world: World) -> float:
    """Of all four halves of the strong shift, on this thread."""
    model = world.model()
    started = time.thread_time()
    measure(model, world.domain("strong"), world.bed.sides["general"])
    return time.thread_time() - started


def records_of(keys: Mapping[str, str], wanted: Sequence[Any]) -> list[dict[str, Any]]:
    """The cached records of these settings, those that are there."""
    found = [store.cached(keys[store.name_of(item)]) for item in wanted]
    return [record for record in found if record is not None]
