"""Launchers turn a stage run into manifests, and objects back into the state of a run. Pure.

A new launcher: a module with the three functions of `Launcher`, one line in `LAUNCHERS`, golden manifests in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from dapt_operator.launchers import indexed_job, jobset
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.stage_run import Children, RunState

LAUNCHERS: Final[dict[str, Launcher]] = {"IndexedJob": indexed_job, "JobSet": jobset}
"""By the name that a profile gives in `spec.launcher`."""


def all_states(
    children: Children, now: datetime, launchers: Mapping[str, Launcher] = LAUNCHERS
) -> tuple[RunState, ...]:
    """The state of every run, whichever launcher made it: a profile may change its launcher between two runs."""
    found = [state for launcher in launchers.values() for state in launcher.states(children, now)]
    return tuple(sorted(found, key=lambda state: state.identity.fence))
