"""kopf in a thread of its own: started, stopped, and started anew when it gave up or when a kind came or went."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import kopf
import structlog
from kubernetes.client import Configuration

from dapt_operator.runtime import handlers
from dapt_operator.runtime.settings import set_kopf

Kind = tuple[str, str, str]
"""Group, version, plural."""

log = structlog.get_logger("dapt.watches")
AGAIN_SECONDS = 2.0
"""Until kopf is started again after it gave up."""


def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """Credentials for kopf from the client library's, with its token read anew."""
    header = configuration.get_api_key_with_prefix("BearerToken") or configuration.get_api_key_with_prefix(
        "authorization"
    )
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
    """Watches of some kinds of objects, for as long as the process lives."""

    def __init__(
        self,
        notes: handlers.Notes,
        configuration: Configuration,
        find_kinds: Callable[[], tuple[Kind, ...]],
        namespaces: tuple[str, ...] = (),
    ) -> None:
        """`find_kinds` is asked before kopf starts, and at each `check`. No namespaces: all."""
        self._notes = notes
        self._configuration = configuration
        self._find_kinds = find_kinds
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._kinds: tuple[Kind, ...] = ()
        self._ending = threading.Event()
        self._stop_round: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def check(self) -> None:
        """Start kopf anew if other kinds are there than it watches."""
        kinds = self._find_kinds()
        with self._lock:
            if self._kinds and kinds != self._kinds:
                log.info("other kinds are there now", kinds=[plural for _, _, plural in kinds])
                self._stop_round()

    def stop(self, timeout: float) -> bool:
        """End all watches; whether that was done within `timeout` seconds."""
        with self._lock:
            self._ending.set()
            self._stop_round()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_healthy(self) -> bool:
        """Whether the thread lives, once it was started."""
        return self._thread.ident is None or self._thread.is_alive()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                asyncio.run(self._round())
            except Exception as error:
                log.warning("the watches ended and begin anew", error=f"{type(error).__name__}: {error}")
                self._ending.wait(AGAIN_SECONDS)

    async def _round(self) -> None:
        """kopf from its start until it is told to stop."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        kinds = await asyncio.to_thread(self._find_kinds)
        with self._lock:
            if self._ending.is_set():
                return
            self._kinds = kinds
            self._stop_round = lambda: _set(loop, stop)
        registry = kopf.OperatorRegistry()
        handlers.register(
            registry, self._notes, kinds, login=lambda: connection(self._configuration), configure=set_kopf
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
                self._stop_round = lambda: None


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)
