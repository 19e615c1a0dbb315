"""Reads the last log lines of failed pods, once each, in threads: a dead node must not delay the next run."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from dapt_contract.sentences import shortened
from dapt_contract.untrusted.printable import printable
from dapt_operator.cluster.kubernetes.client import ApiServerClient, Query
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.port import Key
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import Manifest

MAX_LINES: Final = 20
MAX_LINE_CHARACTERS: Final = 400
WAIT_SECONDS = 0.5
"""Time that a reconcile waits for lines. Lines that come later wake it again."""
_THREADS: Final = 4
_TIMEOUT_SECONDS: Final = 3.0
_MAX_BYTES: Final = 64 * 1024
_MAX_READS: Final = 2000
_log = logging.getLogger(__name__)


class PodLogs:
    """Reads the logs of failed pods in a thread pool and keeps the lines by the pod's uid."""

    def __init__(self, api: ApiServerClient, on_change: Callable[[Key], None]) -> None:
        self._api = api
        self._on_change = on_change
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="pod-logs")
        self._lock = threading.Lock()
        self._reads: OrderedDict[str, Future[tuple[str, ...]]] = OrderedDict()

    def lines(
        self, key: Key, pods: Sequence[Manifest], to_read: Container[str]
    ) -> dict[str, tuple[str, ...]]:
        """Return the lines that have been read so far, by pod name.

        Args:
            key: adaptation of the pods; woken when lines come late.
            pods: the failed pods.
            to_read: names of the pods whose log is read now, unless it was read before.
        """
        reads: dict[str, Future[tuple[str, ...]]] = {}
        new_reads = []
        for pod in pods:
            uid, name = str(pod["metadata"]["uid"]), str(pod["metadata"]["name"])
            with self._lock:
                read = self._reads.get(uid)
                if read is None and name in to_read:
                    read = self._pool.submit(self._read, str(pod["metadata"]["namespace"]), name)
                    self._reads[uid] = read
                    new_reads.append(read)
                    # Nothing tells this class when a pod is gone: without a bound every failed pod would be kept.
                    while len(self._reads) > _MAX_READS:
                        self._reads.popitem(last=False)
            if read is not None:
                reads[name] = read
        if new_reads:
            # Only reads that began just now are waited for: a dead node delays one reconcile, and not every one after
            # it.
            for late in wait(new_reads, timeout=WAIT_SECONDS).not_done:
                late.add_done_callback(lambda done: self._wake(key, done))
        # A read that failed has no lines, and stays in `_reads`: a node that does not answer is asked once.
        lines_by_pod = {name: read.result() for name, read in reads.items() if _is_read(read)}
        return {name: lines for name, lines in lines_by_pod.items() if lines}

    def close(self) -> None:
        """Start no further read."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _wake(self, key: Key, read: Future[tuple[str, ...]]) -> None:
        if _is_read(read) and read.result():
            self._on_change(key)

    def _read(self, namespace: str, name: str) -> tuple[str, ...]:
        query: Query = {"container": CONTAINER, "tailLines": MAX_LINES, "limitBytes": _MAX_BYTES}
        path = f"{KINDS['Pod'].path(namespace, name)}/log"
        try:
            text = self._api.text(path, query, max_bytes=_MAX_BYTES, timeout_seconds=_TIMEOUT_SECONDS)
        except ApiError as error:
            _log.debug("%s", error)
            return ()
        return last_lines(text)


def _is_read(read: Future[tuple[str, ...]]) -> bool:
    return read.done() and not read.cancelled() and read.exception() is None


def last_lines(text: bytes) -> tuple[str, ...]:
    """Return at most 20 lines of at most 400 characters, without control characters: pods are untrusted."""
    lines = [printable(line).rstrip() for line in text.decode(errors="replace").split("\n")]
    return tuple(shortened(line, MAX_LINE_CHARACTERS) for line in lines if line)[-MAX_LINES:]
