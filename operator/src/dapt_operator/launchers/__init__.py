"""Launchers turn a stage run into manifests, and objects back into the state of a run. Pure.

To add a launcher, write a module with the three functions of `Launcher`, add one line to `LAUNCHERS`, and golden
manifests to the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from dapt_operator.launchers import indexed_job, jobset
from dapt_operator.launchers.labels import orphan_of
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.stage_run import Children, OrphanPod, RunState

LAUNCHERS: Final[dict[str, Launcher]] = {"IndexedJob": indexed_job, "JobSet": jobset}
"""Launchers by the name that a profile gives in `spec.launcher`."""


def all_states(
    children: Children, now: datetime, launchers: Mapping[str, Launcher] = LAUNCHERS
) -> tuple[RunState, ...]:
    """Return the state of every run, whichever launcher created it, oldest fence first.

    A profile may change its launcher between two runs of one adaptation.
    """
    states = [state for launcher in launchers.values() for state in launcher.states(children, now)]
    return tuple(sorted(states, key=lambda state: state.identity.fence))


def orphan_pods(children: Children) -> tuple[OrphanPod, ...]:
    """Return the pods of runs that no object owns and that nobody has deleted yet, by name."""
    alive = (pod for pod in children.orphans if not pod["metadata"].get("deletionTimestamp"))
    orphans = (orphan_of(pod) for pod in alive)
    return tuple(sorted((pod for pod in orphans if pod is not None), key=lambda pod: pod.name))
