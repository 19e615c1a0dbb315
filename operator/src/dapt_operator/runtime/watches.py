"""Runs kopf in its own thread; restarts it when it gave up, or when a kind was installed or removed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final

import kopf
import structlog
from kubernetes.client import Configuration

from dapt_operator.runtime import handlers
from dapt_operator.runtime.kopf_settings import set_kopf
from dapt_operator.runtime.watched_kinds import WatchedKind

log = structlog.get_logger("dapt.watches")
RESTART_SECONDS: Final = 2.0
"""Pause before kopf is started again after it gave up."""


def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return credentials for kopf from those of the client library, with the current token."""
    header = configuration.get_api_key_with_prefix("BearerToken") or configuration.get_api_key_with_prefix(
        "authorization"
    )
    # `Bearer TOKEN`, or a bare token, which then stands where the scheme does.
    scheme, _, token = (header or "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        username=configuration.username or None,
        password=configuration.password or None,
        scheme=scheme if token else None,
        token=token or scheme or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


class Watches:
    """Watches some kinds of objects until `stop`."""

    def __init__(
        self,
        sink: handlers.ObjectSink,
        configuration: Configuration,
        find_kinds: Callable[[], tuple[WatchedKind, ...]],
        namespaces: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            sink: receives the objects.
            configuration: of the client library.
            find_kinds: returns the kinds that can be watched now; called before kopf starts, and at each `check`.
            namespaces: namespaces to watch; empty for all.
        """
        self._sink = sink
        self._configuration = configuration
        self._find_kinds = find_kinds
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._kinds: tuple[WatchedKind, ...] = ()
        self._stopped = threading.Event()
        self._stop_kopf: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)

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
        while not self._stopped.is_set():
            try:
                asyncio.run(self._run_kopf())
            except Exception as error:
                # Nothing is lost meanwhile: kopf lists everything when it starts, and the resync does too.
                log.warning("the watches failed, restarting them", error=f"{type(error).__name__}: {error}")
                self._stopped.wait(RESTART_SECONDS)

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
        # A new registry each time: handlers are added to one and never removed, and the kinds may have changed.
        registry = kopf.OperatorRegistry()
        handlers.register(
            registry, self._sink, kinds, login=lambda: connection(self._configuration), configure=set_kopf
        )
        try:
            await kopf.operator(
                registry=registry,
                settings=kopf.OperatorSettings(),
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
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
