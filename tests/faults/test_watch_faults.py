"""Watches drop, repeat and replay reports, lists and writes are answered with 410 and 409: the end is the same.

The cache, the lists and the client are the operator's own (`support.api_world`). A dropped event is found by the next
resync, which comes every 20 simulated seconds here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from dapt_operator.cluster.kubernetes.cache.entry import CACHED_KINDS
from support.api_double import ApiDouble, Odd, Request
from support.api_world import ApiWorld
from support.campaigns import Campaign, chosen

SAMPLE, WHOLE = 8, 240
RESYNC_SECONDS = 20.0
GONE = Odd(410, {}, b'{"kind":"Status","reason":"Expired","message":"too old resource version"}')
CONFLICT = Odd(409, {}, b'{"kind":"Status","reason":"Conflict","message":"modified"}')
Plant = Callable[[ApiWorld], None]
Change = tuple[str, dict[str, Any]]


def at_event(number: int, replace: Callable[[ApiWorld, Change], list[Change]]) -> Plant:
    """The watches report something else in the place of one change."""

    def plant(world: ApiWorld) -> None:
        world.feed = lambda at, kind, body: replace(world, (kind, body)) if at == number else [(kind, body)]

    return plant


def replayed(number: int, revisions: int) -> Plant:
    """At one change the watch begins again so many revisions back."""

    def replay(world: ApiWorld, change: Change) -> list[Change]:
        return [*world.double.changes[max(0, number - revisions) : number], change]

    return at_event(number, replay)


def lists_gone(number: int) -> Plant:
    """At one change the watch is too old: everything is listed, and the first lists are too old too."""

    def relist(world: ApiWorld, change: Change) -> list[Change]:
        numbers = itertools.count()
        world.cluster.lists.request_all()
        world.double.interfere = lambda request: (
            GONE
            if request.method == "GET"
            and re.search(r"/(jobs|pods|domainadaptations)$", request.path)
            and next(numbers) < 3
            else None
        )
        return []

    return at_event(number, relist)


def conflict_at(number: int) -> Plant:
    """One write of a status, and the one that repeats it, meets another version."""

    def plant(world: ApiWorld) -> None:
        numbers = itertools.count()

        def interfere(request: Request) -> Odd | None:
            is_status = request.method == "PUT" and request.path.endswith("/status")
            return CONFLICT if is_status and next(numbers) in (number, number + 1) else None

        world.double.interfere = interfere

    return plant


def end_of(plant: Plant) -> dict[str, Any]:
    """Live with a fault; return the end."""
    with pytest.MonkeyPatch.context() as monkeypatch, ApiDouble() as double:
        world = ApiWorld(monkeypatch, double)
        try:
            world.resync_seconds = RESYNC_SECONDS
            plant(world)
            world.live()
            return world.end()
        finally:
            world.close()


def cases(changes: list[Change], num_statuses: int) -> list[tuple[str, Plant]]:
    """Every fault at every change that a watch reports, and at every write of the status."""
    watched = [number for number, (_, body) in enumerate(changes) if body.get("kind") in CACHED_KINDS]
    found: list[tuple[str, Plant]] = []
    for number in watched:
        kind, body = changes[number]
        what = f"event {number} ({kind} {body['kind']} {body['metadata']['name']})"
        found += [
            (f"{what} is dropped", at_event(number, lambda world, change: [])),
            (f"{what} comes twice", at_event(number, lambda world, change: [change, change])),
            (f"{what} is answered with 410", lists_gone(number)),
            *((f"{what} after {count} old ones", replayed(number, count)) for count in (1, 5, 25)),
        ]
    found += [(f"status {number} meets a conflict", conflict_at(number)) for number in range(num_statuses)]
    return found


def test_watches_that_report_wrongly_change_nothing_of_the_end() -> None:
    known: list[list[Change]] = []
    expected = end_of(lambda world: known.append(world.double.changes))
    # What the first adaptation and profile were created with comes before any watch.
    every_case = cases(known[0], num_statuses=20)[12:]
    campaign = Campaign("watch-faults", "stale, lost and repeated reports of the watches")
    for name, plant in chosen(every_case, SAMPLE, WHOLE):
        try:
            end = end_of(plant)
            problem = "; ".join(
                f"{n} is {end[n]} and not {expected[n]}" for n in end if end[n] != expected[n]
            )
        except AssertionError as error:
            problem = str(error)
        campaign.count(name, problem)
    campaign.facts = {"events of a life": len(known[0])}
    campaign.finish()
