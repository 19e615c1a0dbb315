"""Writes the list of the harness' task names that manifests are judged by: `python -m dapt_trainer.data.harness_names`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from dapt_contract import harness


def installed() -> harness.Known:
    """What the installed harness has."""
    from lm_eval.tasks import TaskManager

    return harness.Known(version("lm_eval"), tuple(TaskManager().all_tasks))


if __name__ == "__main__":
    (Path(harness.__file__).parent / harness.NAMES_FILE).write_bytes(installed().pack())
