"""The API server and the way to it fail in each phase of a life; the life ends the same, in less than twice the time.

The adapter's own client, cache, lists and Lease stand before an API server in the process, and time is simulated: see
`support.api_world`. A fault begins when the stage before the phase has ended, which is when the operator acts next.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.api_double import ApiDouble, Odd, Request
from support.api_world import ApiWorld
from support.campaigns import Campaign, chosen

PHASES = ("destination", "prepare", "baseline", "pretrain", "evaluate", "finetune", "verify", "publish")
FORBIDDEN = Odd(403, {}, b'{"kind":"Status","reason":"Forbidden","message":"no right"}')
SAMPLE = 6
Plant = Callable[[ApiWorld], None]


def next_requests(hits: int, answer: Odd, pattern: str = "") -> Plant:
    """The next requests that match get this answer."""

    def plant(world: ApiWorld) -> None:
        numbers = itertools.count()

        def interfere(request: Request) -> Odd | None:
            return answer if re.search(pattern, str(request)) and next(numbers) < hits else None

        world.double.interfere = interfere

    return plant


def for_seconds(seconds: float, answer: Odd, pattern: str = "", *, are_watches_cut: bool = False) -> Plant:
    """For a while every request that matches gets this answer."""

    def plant(world: ApiWorld) -> None:
        begin = world.time.now()

        def is_going_on() -> bool:
            return world.time.now() < begin + seconds

        world.double.interfere = lambda request: (
            answer if is_going_on() and re.search(pattern, str(request)) else None
        )
        if are_watches_cut:
            world.is_watching = lambda: not is_going_on()

    return plant


def half_open(world: ApiWorld) -> None:
    """The next three requests are read and never answered."""
    world.silence_next(3)


def slow_lists(world: ApiWorld) -> None:
    """Lists take 20 s each, and everything is listed again."""
    numbers = itertools.count()
    world.cluster.lists.request_all()

    def delay_seconds(method: str, url: str) -> float:
        is_list = method == "GET" and re.search(
            r"/(jobs|jobsets|pods|domainadaptations|adaptationprofiles)\?", url
        )
        return 20.0 if is_list and next(numbers) < 5 else 0.0

    world.delay_seconds = delay_seconds


def expired_token(world: ApiWorld) -> None:
    """The token is refused from now on; the file has the new one 20 s later."""
    world.token.replace(after_seconds=20.0)

    def interfere(request: Request) -> Odd | None:
        is_known = request.headers.get("Authorization") == f"Bearer {world.token.accepted}"
        return (
            None
            if is_known
            else Odd(401, {}, b'{"kind":"Status","reason":"Unauthorized","message":"expired"}')
        )

    world.double.interfere = interfere


FAULTS: dict[str, Plant] = {
    "429 with Retry-After": next_requests(6, Odd(429, {"Retry-After": "3"})),
    "500": next_requests(6, Odd(500)),
    "503 for 30 s": for_seconds(30.0, Odd(503), are_watches_cut=True),
    "reset before it is heard": next_requests(5, Odd(cut=True)),
    "reset after it took effect": next_requests(5, Odd(cut=True, after_effect=True)),
    "half-open sockets": half_open,
    "slow lists": slow_lists,
    "expired token": expired_token,
    "namespace forbidden for 45 s": for_seconds(45.0, FORBIDDEN, "/namespaces/health/", are_watches_cut=True),
    "Lease refused for 45 s": for_seconds(45.0, FORBIDDEN, "/leases"),
    "409 on the status": next_requests(
        7, Odd(409, {}, b'{"reason":"Conflict","message":"modified"}'), "PUT .*/status"
    ),
    "a proxy's page instead of JSON": next_requests(5, Odd(200, {"Content-Type": "text/html"}, b"<html>")),
}


@contextmanager
def life(**spec: Any) -> Iterator[ApiWorld]:
    """A world before an API server of its own."""
    with pytest.MonkeyPatch.context() as monkeypatch, ApiDouble() as double:
        world = ApiWorld(monkeypatch, double, **spec)
        try:
            yield world
        finally:
            world.close()


def has_ended(world: ApiWorld, stage: str) -> bool:
    """Whether a run of a stage has succeeded."""
    jobs = [body for body in list(world.double.objects.values()) if body.get("kind") == "Job"]
    return any(
        job["metadata"]["labels"]["dapt.dev/stage"] == stage
        and any(item["type"] == "Complete" for item in (job.get("status") or {}).get("conditions", []))
        for job in jobs
    )


def broken_life(fault: str, phase: str) -> tuple[float, dict[str, Any]]:
    """Live with a fault in a phase; return the simulated seconds and the end."""
    before = dict(zip(PHASES[1:], PHASES, strict=False)).get(phase)
    with life() as world:
        planted: list[float] = []

        def on_step() -> None:
            if not planted and (before is None or has_ended(world, before)):
                planted.append(world.time.now())
                FAULTS[fault](world)

        seconds = world.live(on_step)
        assert planted, "the fault was not planted"
        return seconds, world.end()


def test_life_with_a_faulty_api_server_ends_the_same_within_twice_the_time() -> None:
    with life() as world:
        fault_free_seconds, expected = world.live(), world.end()
        assert world.errors == []
    campaign = Campaign("api-faults", "faults of the API server in each phase")
    slowest = 0.0
    for fault, phase in chosen([(fault, phase) for fault in FAULTS for phase in PHASES], SAMPLE):
        try:
            seconds, end = broken_life(fault, phase)
            slowest = max(slowest, seconds / fault_free_seconds)
            problem = "; ".join(
                f"{n} is {end[n]} and not {expected[n]}" for n in end if end[n] != expected[n]
            )
            if seconds > 2 * fault_free_seconds:
                problem += f" it took {seconds:.0f} s instead of {fault_free_seconds:.0f} s"
        except AssertionError as error:
            problem = str(error)
        campaign.count(f"{fault}, in {phase}", problem)
    campaign.facts = {
        "kinds of faults": len(FAULTS),
        "phases": len(PHASES),
        "times the fault-free time at most": round(slowest, 2),
    }
    campaign.finish()
