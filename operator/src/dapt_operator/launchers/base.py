"""What a launcher is."""

from __future__ import annotations

from typing import Protocol

from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.run import Children, Manifest, Owner, RunState, StageRun


class Launcher(Protocol):
    """Two pure functions."""

    def render(self, run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> tuple[Manifest, ...]:
        """All objects of one run, in the order of their creation; equal input gives equal output."""
        ...

    def states(self, children: Children) -> tuple[RunState, ...]:
        """The state of every run whose objects are there, oldest fence first."""
        ...
