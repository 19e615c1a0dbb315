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


def _watched(kind: str) -> WatchedKind:
    group, _, version = KINDS[kind].api_version.rpartition("/")
    return WatchedKind(group, version, KINDS[kind].plural)


WATCHED: Final = tuple(_watched(kind) for kind in ("DomainAdaptation", "AdaptationProfile", "Job", "Pod"))
"""Kinds that exist in every cluster of the operator."""
JOBSETS: Final = _watched("JobSet")
"""Watched where the JobSet controller is installed and the operator may read JobSets."""
