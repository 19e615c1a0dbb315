"""Defines what a launcher must provide."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.stage_run import Children, Manifest, Owner, RunState, StageRun


class Launcher(Protocol):
    """Three pure functions between runs and Kubernetes objects."""

    def render(self, run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> tuple[Manifest, ...]:
        """Return all objects of one run, in the order of their creation; equal input gives equal output."""
        ...

    def shared(self, profile: AdaptationProfileSpec, owner: Owner, nodes: int) -> tuple[Manifest, ...]:
        """Return the objects that all runs of an adaptation share (work volume, headless Service).

        They are created with its first run, and again before the retry of a failed one.

        Args:
            profile: source of storage and ports.
            owner: the adaptation.
            nodes: largest number of nodes of any of its runs.
        """
        ...

    def states(self, children: Children, now: datetime) -> tuple[RunState, ...]:
        """Return the state of every run that has an object of this launcher's kind, oldest fence first.

        Args:
            children: all objects of the adaptation; objects of other launchers are ignored.
            now: aware, UTC; a pod past its grace period on a lost node counts as gone.
        """
        ...
