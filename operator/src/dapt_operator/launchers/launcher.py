"""What a launcher is."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.stage_run import Children, Manifest, Owner, RunState, StageRun


class Launcher(Protocol):
    """Three pure functions."""

    def render(self, run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> tuple[Manifest, ...]:
        """All objects of one run, in the order of their creation; equal input gives equal output."""
        ...

    def shared(self, profile: AdaptationProfileSpec, owner: Owner, nodes: int) -> tuple[Manifest, ...]:
        """Objects that all runs of an adaptation share (work volume, headless Service): created with its first run
        and again before a new try after a failure.

        Args:
            profile: storage and ports.
            owner: the adaptation.
            nodes: most nodes that one of its runs has.
        """
        ...

    def states(self, children: Children, now: datetime) -> tuple[RunState, ...]:
        """The state of every run whose objects of this launcher's kind are there, oldest fence first.

        Args:
            children: everything that was found; objects of other launchers are passed over.
            now: aware, UTC; a pod past its grace period on a lost node counts as gone.
        """
        ...
