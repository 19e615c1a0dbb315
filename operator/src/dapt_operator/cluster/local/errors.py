"""Defines what a local run is refused for; `cluster/errors.py` draws the whole tree."""

from __future__ import annotations

from collections.abc import Sequence

from dapt_operator.cluster.errors import ClusterError


class LocalRunError(ClusterError, ValueError):
    """The local run cannot start or continue as requested; one sentence for each problem. A retry does not help."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems
