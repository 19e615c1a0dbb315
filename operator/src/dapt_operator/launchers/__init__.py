"""Launchers turn a stage run into manifests, and objects back into the state of a run. Pure.

A new launcher: a module with the two functions of `Launcher`, one line in `LAUNCHERS`, golden manifests in the tests.
"""

from __future__ import annotations

from typing import Final

from dapt_operator.launchers import indexed_job
from dapt_operator.launchers.base import Launcher

LAUNCHERS: Final[dict[str, Launcher]] = {"IndexedJob": indexed_job}
"""By the name that a profile gives in `spec.launcher`."""
