"""`dapt watch` follows an adaptation by a watch of the API server, in the view that `dapt run` has too."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from dapt_operator.api.v1alpha1.conditions import PUBLISHED
from dapt_operator.cli.commands.cluster.access import ClusterAccess
from dapt_operator.cli.commands.cluster.overview import snapshot_of
from dapt_operator.cli.display.next_steps import next_step
from dapt_operator.cli.display.screen import Screen
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.signals import StopFlag
from dapt_operator.cluster.answers import decoded_object, stored_object
from dapt_operator.cluster.kubernetes.errors import ApiError, ApiUnavailableError
from dapt_operator.stage_run import Manifest

WATCH_SECONDS: Final = 240
"""How long the server keeps one watch open; then the resource is read again and watched on."""
PAUSE_SECONDS: Final = 1.0
"""Between two watches, so that a server that ends each at once is not flooded."""
_SIGNAL_CHECK_SECONDS: Final = 0.2

_Update = Manifest | UserError | None
"""A version of the resource, why it can no longer be read, or None when it was deleted."""


def watch(access: ClusterAccess, name: str, screen: Screen, flag: StopFlag) -> Snapshot:
    """Show an adaptation until it ends, needs its user, or a signal arrives; return the last snapshot.

    Raises:
        UserError: there is none, it was deleted, or it can no longer be read.
    """
    started = time.monotonic()
    updates: queue.Queue[_Update] = queue.Queue()
    resource = access.adaptation(name)
    # A thread, because reading the watch blocks for minutes while the view's clock runs on.
    stopped = threading.Event()
    reader = threading.Thread(
        target=_read, args=(access, resource, updates.put, stopped), name="watch", daemon=True
    )
    with screen:
        reader.start()
        try:
            while True:
                snapshot = snapshot_of(resource, datetime.now(UTC), time.monotonic() - started)
                screen.show(snapshot)
                if flag.is_set or snapshot.finished is not None or snapshot.stalled is not None:
                    return snapshot
                resource = _next(updates, resource, screen.refresh_seconds, flag, name)
        finally:
            stopped.set()


def _next(
    updates: queue.Queue[_Update], resource: Manifest, seconds: float, flag: StopFlag, name: str
) -> Manifest:
    """Return the next version, or the same one when the time is up or a signal arrives."""
    until = time.monotonic() + seconds
    while not flag.is_set and (left := until - time.monotonic()) > 0:
        try:
            update = updates.get(timeout=min(left, _SIGNAL_CHECK_SECONDS))
        except queue.Empty:
            continue
        if update is None:
            raise UserError(f"adaptation {name} was deleted while it was watched; create it again to run it")
        if isinstance(update, UserError):
            raise update
        return update
    return resource


def _read(
    access: ClusterAccess,
    resource: Manifest,
    put: Callable[[_Update], None],
    stopped: threading.Event,
) -> None:
    """Watch on and on; after each watch the resource is read again, so that nothing is missed in between."""
    name, uid = str(resource["metadata"]["name"]), resource["metadata"].get("uid")
    version = str(resource["metadata"].get("resourceVersion") or "")
    try:
        while not stopped.is_set():
            try:
                for line in access.watch(name, version, WATCH_SECONDS):
                    event = decoded_object(line)
                    if event.get("type") in ("ADDED", "MODIFIED"):
                        put(stored_object(event.get("object")))
                    elif event.get("type") == "DELETED":
                        put(None)
                        return
                    else:
                        break  # an error, such as a version that the server no longer has
            except ApiUnavailableError:
                pass  # the line was cut; whether the server is gone, the next read finds out
            except ApiError as error:
                if error.status != 410:
                    raise
            if stopped.wait(PAUSE_SECONDS):
                return
            found = access.find(name)
            if found is None or found["metadata"].get("uid") != uid:
                put(None)
                return
            version = str(found["metadata"].get("resourceVersion") or "")
            put(found)
    except UserError as error:
        put(error)
    except (ApiError, ValueError) as error:
        put(UserError(f"cannot watch adaptation {name}: {error}; try again"))


def exit_sentence(name: str, snapshot: Snapshot) -> str:
    """Return why a watched adaptation has no published model; empty when it has one, or still runs."""
    condition = snapshot.stalled or snapshot.finished
    if condition is None or (condition is snapshot.finished and condition.reason == PUBLISHED):
        return ""
    step = next_step(condition.reason)
    return f"{name}: {condition.reason}: {condition.message}" + (f"; next: {step}" if step else "")
