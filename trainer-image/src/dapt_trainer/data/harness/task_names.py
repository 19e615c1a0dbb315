"""The names that manifests are judged by: `python -m dapt_trainer.data.harness.task_names` writes the list anew."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from dapt_contract import harness


def installed(manager: Any = None) -> harness.HarnessTasks:
    """What the installed harness has; its `TaskManager` takes seconds to make, so one that is at hand is used."""
    from lm_eval.tasks import TaskManager

    return harness.HarnessTasks(version("lm_eval"), tuple((manager or TaskManager()).all_tasks))


if __name__ == "__main__":
    (Path(harness.__file__).parent / harness.NAMES_FILE).write_bytes(installed().pack())
