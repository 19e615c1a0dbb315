"""`dapt watch` follows an adaptation by a watch of the API server, in the view that `dapt run` has too."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from dapt_client.access import ClusterAccess
from dapt_client.resources import is_outdated
from dapt_client.updates import Updates
from dapt_operator.cli.commands.cluster.overview import snapshot_of
from dapt_operator.cli.display.screen import Screen
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.signals import StopFlag
from dapt_operator.stage_run import Manifest

_SIGNAL_CHECK_SECONDS: Final = 0.2


def watch(access: ClusterAccess, name: str, screen: Screen, flag: StopFlag) -> Snapshot:
    """Show an adaptation until it ends, needs its user, or a signal arrives; return the last snapshot.

    Raises:
        UserError: there is none, it was deleted, or it can no longer be read.
    """
    started = time.monotonic()
    resource = access.adaptation(name)
    with screen, Updates(access, resource) as updates:
        while True:
            snapshot = snapshot_of(resource, datetime.now(UTC), time.monotonic() - started)
            screen.show(snapshot)
            has_ended = snapshot.finished is not None or snapshot.stalled is not None
            # An end that was written before the spec was changed is no end of what the user has asked for since.
            if flag.is_set or (has_ended and not is_outdated(resource, snapshot.status)):
                return snapshot
            resource = _next(updates, resource, screen.refresh_seconds, flag)


def _next(updates: Updates, resource: Manifest, seconds: float, flag: StopFlag) -> Manifest:
    """Return the next version, or the same one when the time is up or a signal arrives."""
    until = time.monotonic() + seconds
    while not flag.is_set and (left := until - time.monotonic()) > 0:
        update = updates.next(min(left, _SIGNAL_CHECK_SECONDS))
        if update is not None:
            return update
    return resource
