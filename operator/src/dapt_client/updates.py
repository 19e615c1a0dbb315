"""Follows an adaptation by a watch of the API server, and reads it again whenever a watch ends."""

from __future__ import annotations

import queue
import threading
from types import TracebackType
from typing import Final, Self

from dapt_client.access import ClusterAccess
from dapt_client.errors import UserError
from dapt_operator.cluster.answers import decoded_object, stored_object
from dapt_operator.cluster.kubernetes.errors import ApiError, ApiUnavailableError
from dapt_operator.stage_run import Manifest

WATCH_SECONDS: Final = 240
"""How long the server keeps one watch open; then the resource is read again and watched on."""
PAUSE_SECONDS: Final = 1.0
"""Between two watches, so that a server that ends each at once is not flooded."""

_Update = Manifest | UserError | None
"""A version of the resource, why it can no longer be read, or None when it was deleted."""


class Updates:
    """Versions of an adaptation as they come. Use as a context manager, which starts and stops the watch."""

    def __init__(self, access: ClusterAccess, resource: Manifest) -> None:
        self._access = access
        self._resource = resource
        self._queue: queue.Queue[_Update] = queue.Queue()
        self._stopped = threading.Event()
        # A thread, because reading the watch blocks for minutes while the caller's clock runs on.
        self._reader = threading.Thread(target=self._read, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()

    def next(self, seconds: float) -> Manifest | None:
        """Return the next version; None when there is none within the time.

        Raises:
            UserError: the adaptation was deleted, or can no longer be read.
        """
        try:
            update = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if update is None:
            name = self._resource["metadata"]["name"]
            raise UserError(f"adaptation {name} was deleted while it was watched; create it again to run it")
        if isinstance(update, UserError):
            raise update
        return update

    def _read(self) -> None:
        """Watch on and on; after each watch the resource is read again, so that nothing is missed in between."""
        metadata = self._resource["metadata"]
        name, uid = str(metadata["name"]), metadata.get("uid")
        version = str(metadata.get("resourceVersion") or "")
        try:
            while not self._stopped.is_set():
                if self._is_deleted_in_watch(name, version) or self._stopped.wait(PAUSE_SECONDS):
                    return
                found = self._access.find(name)
                if found is None or found["metadata"].get("uid") != uid:
                    self._queue.put(None)
                    return
                version = str(found["metadata"].get("resourceVersion") or "")
                self._queue.put(found)
        except UserError as error:
            self._queue.put(error)
        except (ApiError, ValueError) as error:
            self._queue.put(UserError(f"cannot watch adaptation {name}: {error}; try again"))

    def _is_deleted_in_watch(self, name: str, version: str) -> bool:
        """Pass on what one watch reports; return whether it has reported the deletion."""
        try:
            for line in self._access.watch(name, version, WATCH_SECONDS):
                event = decoded_object(line)
                if event.get("type") in ("ADDED", "MODIFIED"):
                    self._queue.put(stored_object(event.get("object")))
                elif event.get("type") == "DELETED":
                    self._queue.put(None)
                    return True
                else:
                    break  # an error, such as a version that the server no longer has
        except ApiUnavailableError:
            pass  # the line was cut; whether the server is gone, the next read finds out
        except ApiError as error:
            if error.status != 410:
                raise
        return False
