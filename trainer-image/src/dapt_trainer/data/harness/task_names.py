"""Lists the tasks of the installed harness: `python -m dapt_trainer.data.harness.task_names` updates the stored list.

Manifests are checked against the stored list, because the operator has no harness.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.inputs import harness

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def installed_tasks(manager: TaskManager | None = None) -> harness.HarnessTasks:
    """Return the names that the installed harness knows.

    Args:
        manager: of the harness; None: a new one, which takes seconds to make.
    """
    from lm_eval.tasks import TaskManager

    return harness.HarnessTasks(version("lm_eval"), tuple((manager or TaskManager()).all_tasks))


if __name__ == "__main__":
    (Path(harness.__file__).parent / harness.NAMES_FILE).write_bytes(installed_tasks().pack())
