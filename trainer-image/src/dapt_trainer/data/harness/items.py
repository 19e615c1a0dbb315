"""Tasks that lm-evaluation-harness ships: their data brought to the work volume, their items for decontamination.

The work is done by `harness_snapshot` in a process of its own, because the harness imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dapt_trainer.data.dedup.contamination import EvaluationItem
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.run_module import run_module

_MODULE = "dapt_trainer.data.harness.snapshot"


@dataclass
class HarnessTasks:
    """What the named tasks measure with."""

    items: list[EvaluationItem] = field(default_factory=list)
    """Those that are measured, and no others."""
    counts: dict[str, int] = field(default_factory=dict)
    resolved: list[tuple[str, str]] = field(default_factory=list)
    """Data sets as the harness names them, and with the revisions that were read."""


def check_names(fields: dict[str, str], scratch: Path, problems: Problems, beat: Callable[[], None]) -> bool:
    """Note every name that the installed harness does not have; takes seconds and needs no network.

    Args:
        fields: of the manifest, by the task's name.
        scratch: for the libraries' caches.
        problems: gets the sentences.
        beat: called while it works.

    Returns:
        Whether all names are known.
    """
    result = _run({"names": list(fields), "names_alone": True}, scratch, beat)
    return not _noted(result, fields, problems)


def read_harness_tasks(
    fields: dict[str, str],
    folder: Path,
    scratch: Path,
    problems: Problems,
    beat: Callable[[], None],
    *,
    limit: int | None,
) -> HarnessTasks:
    """Bring the tasks' data below `folder` and say what is in it; what cannot be had is noted.

    Args:
        fields: of the manifest, by the task's name.
        folder: gets one folder a task.
        scratch: for the libraries' caches.
        problems: gets the sentences.
        beat: called while it works.
        limit: items a task; None: all.
    """
    request = {"names": list(fields), "limit": limit, "folder": str(folder)}
    result = _run(request, scratch, beat)
    _noted(result, fields, problems)
    found = HarnessTasks()
    for name, task in result["tasks"].items():
        found.items += [
            EvaluationItem(name, question, answer, choices=tuple(choices))
            for question, answer, choices in task["items"]
        ]
        found.counts[name] = len(task["items"])
        found.resolved += [(written, resolved) for written, resolved in task["resolved"]]
    return found


def _noted(result: dict[str, Any], fields: dict[str, str], problems: Problems) -> bool:
    for name, sentence in result["errors"].items():
        problems.add(f"{fields[name]}: {sentence}")
    return bool(result["errors"])


def _run(request: dict[str, Any], scratch: Path, beat: Callable[[], None]) -> dict[str, Any]:
    environment = {"HF_HOME": str(scratch / "hub"), "DATASETS_VERBOSITY": "error"}
    done = run_module(_MODULE, [json.dumps(request)], environment, beat)
    lines = done.output.strip().splitlines()
    if done.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    sentence = f"lm-evaluation-harness could not be asked ({done.last_error})"
    return {"tasks": {}, "errors": dict.fromkeys(request["names"], sentence)}
