"""Names the kinds of objects that the operator watches."""

from __future__ import annotations

from typing import Final, NamedTuple

from dapt_operator.cluster.kubernetes.resources import KINDS


class WatchedKind(NamedTuple):
    """A kind as kopf selects it."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str


def watched_kind(kind: str) -> WatchedKind:
    """Return a kind by its name in manifests."""
    group, _, version = KINDS[kind].api_version.rpartition("/")
    return WatchedKind(group, version, KINDS[kind].plural)


WATCHED: Final = tuple(watched_kind(kind) for kind in ("DomainAdaptation", "AdaptationProfile", "Job", "Pod"))
"""Kinds that exist in every cluster of the operator."""
JOBSETS: Final = watched_kind("JobSet")
"""Watched where the JobSet controller is installed and the operator may read JobSets."""
