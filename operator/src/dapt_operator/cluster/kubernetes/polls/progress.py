"""Live readings of the running runs, fetched beside the loop so that no slow or hostile answer delays it.

One thread asks all of them at once (asyncio): a hundred pods behind a firewall that drops packets cost no more time
than one. Answers are bounded, must be a `Progress` and carry the run's own key; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

import aiohttp
from pydantic import ValidationError

from dapt_contract.progress import Progress
from dapt_operator.cluster.kubernetes.cache.entry import Target
from dapt_operator.cluster.port import Key

INTERVAL_SECONDS = 3.0
TELL_SECONDS = 6.0
"""Least time between two wakes for the same run; its status is written less often still."""
TIMEOUT_SECONDS = 2.0
MAX_BYTES = 64 * 1024
_AT_ONCE = 128
_log = logging.getLogger(__name__)


class ProgressPolls:
    """Asks the first pod of every running run every three seconds; keeps the last answer of each."""

    def __init__(self, targets: Callable[[], Sequence[Target]], on_change: Callable[[Key], None]) -> None:
        """
        Args:
            targets: whom to ask now.
            on_change: called from the readings' thread when a reading changed.
        """
        self._targets = targets
        self._on_change = on_change
        self._latest: dict[Target, Progress] = {}
        self._by_key: dict[Key, dict[str, Progress]] = {}
        self._told: dict[Target, tuple[float, Progress]] = {}
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="readings", daemon=True)
        self._thread.start()

    def of(self, key: Key) -> dict[str, Progress]:
        """The last readings of an adaptation's runs, by name of the Job or JobSet."""
        return self._by_key.get(key, {})

    def close(self) -> None:
        """Stop asking."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(timeout=2 * TIMEOUT_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._ask_for_ever())
        finally:
            self._loop.close()

    async def _ask_for_ever(self) -> None:
        # No limit of the connector's own: waiting for it would count against the time of an answer.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        at_once = asyncio.Semaphore(_AT_ONCE)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            while not self._over.is_set():
                try:
                    await self._round(session, at_once)
                except Exception:
                    _log.exception("a round of live readings failed; the next one comes")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), INTERVAL_SECONDS)

    async def _round(self, session: aiohttp.ClientSession, at_once: asyncio.Semaphore) -> None:
        async def ask(target: Target) -> Progress | None:
            async with at_once:
                return await fetch(session, target)

        targets = self._targets()
        readings = await asyncio.gather(*(ask(target) for target in targets), return_exceptions=True)
        latest = {target: self._latest[target] for target in targets if target in self._latest}
        for target, found in zip(targets, readings, strict=True):
            if isinstance(found, Progress):
                latest[target] = found
        by_key: dict[Key, dict[str, Progress]] = {}
        for target, reading in latest.items():
            by_key.setdefault(target.key, {})[target.holder] = reading
        self._latest, self._by_key = latest, by_key
        self._told = {target: told for target, told in self._told.items() if target in latest}
        now = time.monotonic()
        for target, reading in latest.items():
            when, what = self._told.get(target, (now - TELL_SECONDS, None))
            if reading != what and now - when >= TELL_SECONDS:
                self._told[target] = (now, reading)
                self._on_change(target.key)


async def fetch(session: aiohttp.ClientSession, target: Target) -> Progress | None:
    """One reading; None when nobody answers in time or what comes is not one of this run."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    try:
        async with session.get(f"http://{host}:{target.port}/progress", allow_redirects=False) as answer:
            if answer.status != 200:
                return None
            content = await _bounded(answer.content)
        reading = None if content is None else Progress.model_validate_json(content)
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError, ValidationError):
        return None
    return reading if reading is not None and reading.run_key.startswith(target.run) else None


async def _bounded(stream: aiohttp.StreamReader) -> bytes | None:
    """All of it; None when it is longer than a reading may be."""
    pieces, size = [], 0
    async for piece in stream.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            return None
    return b"".join(pieces)
