"""Polls running pods for live readings, in its own thread so that no slow or hostile answer delays a reconcile.

One thread requests all readings concurrently (asyncio): a hundred pods behind a firewall that drops packets cost no
more time than one. Answers are bounded, must be a `Progress` and carry the run's own key; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp

from dapt_contract.pod.progress import Progress
from dapt_operator.cluster.kubernetes.cache.entry import Target
from dapt_operator.cluster.port import Key
from dapt_operator.cluster.progress_reading import MAX_READING_BYTES, PROGRESS_PATH, is_encoded, parse_reading

INTERVAL_SECONDS = 3.0
READINGS_PER_SECOND: Final = 20.0
"""Requests on average at most: each takes most of a millisecond of the processor, whoever answers."""
WAKE_INTERVAL_SECONDS = 6.0
"""Least time between two wakes for the same run; its status is written less often still."""
TIMEOUT_SECONDS = 2.0
_MAX_CONCURRENT: Final = 128
_log = logging.getLogger(__name__)


class ProgressPolls:
    """Requests a reading of the first pod of every running run, every three seconds or, of more than sixty runs, as
    often as the rate allows; keeps the last one of each."""

    def __init__(self, targets: Callable[[], Sequence[Target]], on_change: Callable[[Key], None]) -> None:
        """
        Args:
            targets: returns the pods to poll now.
            on_change: called from the thread of the polls when a reading changed.
        """
        self._targets = targets
        self._on_change = on_change
        self._latest: dict[Target, Progress] = {}
        self._by_key: dict[Key, dict[str, Progress]] = {}
        self._reported: dict[Target, tuple[float, Progress]] = {}
        """The last reading for which `on_change` was called, and when."""
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def readings(self, key: Key) -> dict[str, Progress]:
        """Return the last readings of an adaptation's runs, by name of the Job or JobSet."""
        return self._by_key.get(key, {})

    def close(self) -> None:
        """Stop polling."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(timeout=2 * TIMEOUT_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._poll_until_stopped())
        finally:
            self._loop.close()

    async def _poll_until_stopped(self) -> None:
        concurrency = asyncio.Semaphore(_MAX_CONCURRENT)
        async with make_session() as session:
            while not self._stopped.is_set():
                pause = INTERVAL_SECONDS
                try:
                    targets = self._targets()
                    pause = pause_seconds(len(targets))
                    await self._poll_all(targets, session, concurrency)
                except Exception:
                    _log.exception("polling for live readings failed, polling again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), pause)

    async def _poll_all(
        self, targets: Sequence[Target], session: aiohttp.ClientSession, concurrency: asyncio.Semaphore
    ) -> None:
        async def poll(target: Target) -> Progress | None:
            async with concurrency:
                return await fetch(session, target)

        # Exceptions are returned: one pod's answer must not discard those of all others.
        answers = await asyncio.gather(*(poll(target) for target in targets), return_exceptions=True)
        # A pod that does not answer in time keeps its last reading as long as it runs.
        latest = {target: self._latest[target] for target in targets if target in self._latest}
        for target, answer in zip(targets, answers, strict=True):
            if isinstance(answer, Progress):
                latest[target] = answer
        by_key: dict[Key, dict[str, Progress]] = {}
        for target, reading in latest.items():
            by_key.setdefault(target.key, {})[target.holder] = reading
        # Both are replaced as a whole, because reconciles read them from other threads without a lock.
        self._latest, self._by_key = latest, by_key
        self._reported = {target: last for target, last in self._reported.items() if target in latest}
        now = time.monotonic()
        for target, reading in latest.items():
            reported_at, reported = self._reported.get(target, (now - WAKE_INTERVAL_SECONDS, None))
            if reading != reported and now - reported_at >= WAKE_INTERVAL_SECONDS:
                self._reported[target] = (now, reading)
                self._on_change(target.key)


def pause_seconds(num_runs: int) -> float:
    """Return the seconds between two requests of the readings of so many runs."""
    return max(INTERVAL_SECONDS, num_runs / READINGS_PER_SECOND)


def make_session() -> aiohttp.ClientSession:
    """Return a session for untrusted answers: bounded in time, without cookies, and nothing is decompressed."""
    return aiohttp.ClientSession(
        # No limit: waiting for a free connection would count against the time of an answer.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
    )


async def fetch(session: aiohttp.ClientSession, target: Target) -> Progress | None:
    """Return a reading; None when no process answers in time or the answer is no reading of this run."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    url = f"http://{host}:{target.port}{PROGRESS_PATH}"
    try:
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status != 200 or is_encoded(answer.headers.get("Content-Encoding")):
                return None
            content = await _bounded(answer.content)
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError):
        return None
    return parse_reading(content, target.run)


async def _bounded(stream: aiohttp.StreamReader) -> bytes:
    """Return the content, or its beginning as soon as it is longer than a reading may be."""
    pieces, size = [], 0
    async for piece in stream.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > MAX_READING_BYTES:
            break
    return b"".join(pieces)
