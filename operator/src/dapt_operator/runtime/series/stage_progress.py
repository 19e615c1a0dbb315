"""Reads from a status how far its running stages are, by their kind."""

from __future__ import annotations

from collections.abc import Iterable

from dapt_operator.runtime.series.shown_status import ShownProgress, ShownStatus


def least_progress(status: ShownStatus) -> Iterable[tuple[str, float]]:
    """Return by kind of stage the share that is done; of several runs of a kind, of the one with the least."""
    least: dict[str, float] = {}
    for kind, progress in _running(status):
        if progress.fraction is not None:
            least[kind] = min(progress.fraction, least.get(kind, 1.0))
    return least.items()


def most_seconds_left(status: ShownStatus) -> Iterable[tuple[str, float]]:
    """Return by kind of stage the seconds that are left; of several runs of a kind, of the one with the most."""
    most: dict[str, float] = {}
    for kind, progress in _running(status):
        if progress.eta_seconds is not None:
            most[kind] = max(progress.eta_seconds, most.get(kind, 0.0))
    return most.items()


def _running(status: ShownStatus) -> Iterable[tuple[str, ShownProgress]]:
    for stage in status.stages:
        progress = status.progress if stage.kind == "pretrain" else stage.progress
        if stage.state == "Running" and progress is not None:
            yield stage.kind, progress
