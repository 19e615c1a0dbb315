"""Runs kopf in threads, one for each watched namespace; restarts it when it gave up, or when its kinds have changed.

kopf gives up as a whole when one of its watches is refused, so each namespace has a kopf of its own: one that is gone
or forbidden must not end the watches of the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from dapt_operator.cluster.kubernetes import Connection
from dapt_operator.runtime.watching import handlers
from dapt_operator.runtime.watching.kopf_library import kopf
from dapt_operator.runtime.watching.kopf_settings import set_kopf
from dapt_operator.runtime.watching.session import login
from dapt_operator.runtime.watching.watched_kinds import WatchedKind

log = structlog.get_logger("dapt.watches")
RESTART_SECONDS: Final = 2.0
"""Pause before kopf is started again after it gave up; twice as long after each further time."""
LONGEST_RESTART_SECONDS: Final = 30.0


class Watch:
    """Watches the objects of one namespace, or of the whole cluster, until `stop`."""

    def __init__(
        self,
        sink: handlers.ObjectSink,
        connection: Connection,
        find_kinds: Callable[[], tuple[WatchedKind, ...]],
        on_gap: Callable[[], None] = lambda: None,
        namespace: str | None = None,
    ) -> None:
        """
        Args:
            sink: receives the objects.
            connection: to the API server.
            find_kinds: returns the kinds that can be watched now; called before kopf starts, and at each `check`.
            on_gap: called whenever deletions may have happened that no event reports.
            namespace: namespace to watch; None for all, and for kinds without one.
        """
        self._sink = sink
        self._connection = connection
        self._find_kinds = find_kinds
        self._on_gap = on_gap
        self._namespace = namespace
        self._lock = threading.Lock()
        self._kinds: tuple[WatchedKind, ...] = ()
        self._stopped = threading.Event()
        self._stop_kopf: Callable[[], None] = lambda: None
        name = "watches" if namespace is None else f"watches-{namespace}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def check(self) -> None:
        """Restart kopf if the kinds that can be watched have changed."""
        kinds = self._find_kinds()
        with self._lock:
            # Without kinds kopf has not been started yet: it asks for them itself.
            if self._kinds and kinds != self._kinds:
                log.info(
                    "watched kinds have changed, restarting the watches",
                    kinds=[kind.plural for kind in kinds],
                    namespace=self._namespace or "all",
                )
                self._stop_kopf()

    def stop(self, timeout_seconds: float) -> bool:
        """End all watches; return whether they ended within `timeout_seconds`."""
        with self._lock:
            self._stopped.set()
            self._stop_kopf()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def is_healthy(self) -> bool:
        """Whether the thread is alive, or was not started yet."""
        return self._thread.ident is None or self._thread.is_alive()

    def _run(self) -> None:
        last_error, pause_seconds = "", RESTART_SECONDS
        while not self._stopped.is_set():
            started_at = time.monotonic()
            try:
                asyncio.run(self._run_kopf())
            except Exception as error:
                if time.monotonic() - started_at > LONGEST_RESTART_SECONDS:
                    last_error, pause_seconds = "", RESTART_SECONDS
                message = f"{type(error).__name__}: {error}"
                # One line for each outage, not one for each attempt.
                if message != last_error:
                    log.warning(
                        "the watches failed, restarting them",
                        error=message,
                        namespace=self._namespace or "all",
                    )
                last_error = message
                # The lists find out whether something is forbidden now, and what has been deleted meanwhile.
                self._on_gap()
                self._stopped.wait(pause_seconds)
                pause_seconds = min(LONGEST_RESTART_SECONDS, 2.0 * pause_seconds)
            else:
                last_error, pause_seconds = "", RESTART_SECONDS

    async def _run_kopf(self) -> None:
        """Run kopf until `_stop_kopf` is called."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        kinds = await asyncio.to_thread(self._find_kinds)
        with self._lock:
            # `stop` may have been called while the kinds were listed: it found no kopf to stop.
            if self._stopped.is_set():
                return
            self._kinds = kinds
            self._stop_kopf = lambda: _set(loop, stop)
        if not kinds:
            # Nothing can be watched in this namespace now. The lists go on, and tell when that has changed.
            await _wait(stop, RESTART_SECONDS)
            return
        # A new registry each time: handlers are added to one and never removed, and the kinds may have changed.
        registry = kopf.OperatorRegistry()
        handlers.register(
            registry,
            self._sink,
            kinds,
            login=login(self._connection),
            configure=set_kopf,
            on_listed=self._on_gap,
        )
        # Also without an object in its list: the last one may just have been deleted.
        self._on_gap()
        try:
            await kopf.operator(
                registry=registry,
                settings=kopf.OperatorSettings(),
                standalone=True,
                clusterwide=self._namespace is None,
                namespaces=() if self._namespace is None else (self._namespace,),
                stop_flag=stop,
            )
        finally:
            with self._lock:
                # The loop of this kopf ends now: a later stop must not reach for it.
                self._stop_kopf = lambda: None


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    # kopf may have ended by itself, and its loop with it.
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
