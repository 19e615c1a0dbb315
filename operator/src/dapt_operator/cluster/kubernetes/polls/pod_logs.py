"""The last lines of failed pods, read once each, beside the loop: a dead node must not hold up the next try."""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from dapt_operator.cluster.kubernetes.client import Api
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.port import Key
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import Manifest

LINES = 20
MAX_LINE_CHARACTERS = 400
WAIT_SECONDS = 0.5
"""How long a reconcile waits for lines; those that come later wake it again."""
_THREADS = 4
_TIMEOUT_SECONDS = 3.0
_MAX_BYTES = 64 * 1024
_MOST_KEPT = 2000
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PodLogs:
    """Reads the log of a failed pod in a thread of its own pool; keeps the lines by the pod's uid."""

    def __init__(self, api: Api, on_change: Callable[[Key], None]) -> None:
        self._api = api
        self._on_change = on_change
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="pod-logs")
        self._lock = threading.Lock()
        self._reads: OrderedDict[str, Future[tuple[str, ...]]] = OrderedDict()

    def of(self, key: Key, pods: Sequence[Manifest], read: Container[str]) -> dict[str, tuple[str, ...]]:
        """Lines by pod name, as far as they could be read by now.

        Args:
            key: woken when lines come late.
            pods: whose lines are wanted, when they are known.
            read: names of those among them whose log is to be read now, unless it was.
        """
        reads: dict[str, Future[tuple[str, ...]]] = {}
        fresh = []
        for pod in pods:
            uid, name = str(pod["metadata"]["uid"]), str(pod["metadata"]["name"])
            with self._lock:
                known = self._reads.get(uid)
                if known is None and name in read:
                    known = self._pool.submit(self._read, str(pod["metadata"]["namespace"]), name)
                    self._reads[uid] = known
                    fresh.append(known)
                    while len(self._reads) > _MOST_KEPT:
                        self._reads.popitem(last=False)
            if known is not None:
                reads[name] = known
        if fresh:
            for late in wait(fresh, timeout=WAIT_SECONDS).not_done:
                late.add_done_callback(lambda done: self._tell(key, done))
        done = {name: future.result() for name, future in reads.items() if _is_read(future)}
        return {name: lines for name, lines in done.items() if lines}

    def close(self) -> None:
        """Read no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _tell(self, key: Key, read: Future[tuple[str, ...]]) -> None:
        if _is_read(read) and read.result():
            self._on_change(key)

    def _read(self, namespace: str, name: str) -> tuple[str, ...]:
        query = {"container": CONTAINER, "tailLines": LINES, "limitBytes": _MAX_BYTES}
        path = f"{KINDS['Pod'].path(namespace, name)}/log"
        try:
            text = self._api.text(path, query, max_bytes=_MAX_BYTES, timeout_seconds=_TIMEOUT_SECONDS)
        except ApiError as error:
            logging.getLogger(__name__).debug("%s", error)
            return ()
        return last_lines(text)


def _is_read(read: Future[tuple[str, ...]]) -> bool:
    return read.done() and not read.cancelled() and read.exception() is None


def last_lines(text: bytes) -> tuple[str, ...]:
    """At most 20 lines of at most 400 characters, without control characters: what a pod writes is not trusted."""
    lines = [_CONTROL.sub("", line).rstrip() for line in text.decode(errors="replace").split("\n")]
    return tuple(line[:MAX_LINE_CHARACTERS] for line in lines if line)[-LINES:]
