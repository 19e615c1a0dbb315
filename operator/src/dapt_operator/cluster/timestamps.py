"""Writes times as Kubernetes' MicroTime, which Leases and the objects of a local run carry."""

from __future__ import annotations

from datetime import UTC, datetime


def micro_time(moment: datetime | None = None) -> str:
    """Return RFC 3339 in UTC with microseconds; the current time without `moment`."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
