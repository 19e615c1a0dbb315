"""Remembers what was decided last, so that an adaptation which only waits is not decided again at each wake.

A grown status takes tens of milliseconds to read, and hundreds of adaptations are woken every minute in case that a
report was lost. What is remembered is memory, not state: without it the same is decided once more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

from dapt_operator.cluster.port import Key, World
from dapt_operator.plan.decide import Plan


@dataclass(frozen=True)
class _Last:
    """A plan in which nothing was to be done."""

    digest: bytes
    """Of the world that it was decided for."""
    until: datetime
    """When time alone may have changed it."""
    requeue_after: float | None


class LastPlans:
    """Holds the last empty plan of each adaptation that was seen waiting."""

    def __init__(self) -> None:
        self._plans: dict[Key, _Last] = {}

    def find(self, key: Key, world: World) -> Plan | None:
        """Return the plan for a world, without deciding again; None where it has to be decided."""
        last = self._plans.get(key)
        if last is None:
            return None
        if world.resource is None or world.is_check_due or world.now >= last.until:
            del self._plans[key]
            return None
        return Plan(requeue_after=last.requeue_after) if _digest(world) == last.digest else None

    def note(self, key: Key, world: World, plan: Plan) -> None:
        """Take note of what was decided for a world and carried out."""
        if plan.is_empty and plan.steady_seconds > 0 and world.resource is not None:
            until = world.now + timedelta(seconds=plan.steady_seconds)
            self._plans[key] = _Last(_digest(world), until, plan.requeue_after)
        else:
            self._plans.pop(key, None)


def _digest(world: World) -> bytes:
    """Return a digest of everything that a plan depends on but the time."""
    metadata = (world.resource or {}).get("metadata") or {}
    # The resource by its version: its status is long.
    parts = (
        [metadata.get("uid"), metadata.get("resourceVersion")],
        world.profile,
        vars(world.children),
        world.default_profiles,
        world.contents,
        world.keeps_ended_runs,
    )
    return hashlib.sha256(json.dumps(parts, default=_plain).encode(errors="replace")).digest()


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return dict(value) if hasattr(value, "keys") else repr(value)  # type: ignore[call-overload]
