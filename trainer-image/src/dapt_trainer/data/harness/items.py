"""Brings the data of the harness' tasks to the work volume, and reads their items for decontamination.

`harness.snapshot` does the work in a process of its own, because the harness imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from dapt_contract.base import Contract
from dapt_trainer.data.dedup.contamination import EvaluationItem
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.run_module import run_module

_MODULE = "dapt_trainer.data.harness.snapshot"


@dataclass
class HarnessItems:
    """Holds the items that the named tasks measure with."""

    items: list[EvaluationItem] = field(default_factory=list)
    """The measured items alone."""
    counts: dict[str, int] = field(default_factory=dict)
    resolved: list[tuple[str, str]] = field(default_factory=list)
    """(data set as the harness names it, the same with the revision that was read)."""


class SnapshotTask(Contract):
    """Describes the items and data sets of one task that the snapshot stored."""

    items: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(question, right answer, all answers) of each measured item."""
    resolved: tuple[tuple[str, str], ...]


class SnapshotResult(Contract):
    """Defines what the snapshot prints."""

    tasks: dict[str, SnapshotTask] = Field(default_factory=dict)
    errors: dict[str, str] = Field(default_factory=dict)
    """A sentence for each task that cannot be measured."""


class SnapshotRequest(Contract):
    """Defines the argument of the snapshot."""

    names: tuple[str, ...]
    """Tasks, groups or tags of the harness."""
    limit: int | None = None
    """Items a task; None: all."""
    folder: str | None = None
    """Gets one folder a task; None: only the names are checked."""


def check_names(fields: dict[str, str], scratch: Path, problems: Problems, beat: Callable[[], None]) -> bool:
    """Report every name that the installed harness does not have; takes seconds and needs no network.

    Args:
        fields: of the manifest, by the task's name.
        scratch: for the libraries' caches.
        problems: gets the sentences.
        beat: called during the check.

    Returns:
        Whether the harness has all of them.
    """
    result = _run(SnapshotRequest(names=tuple(fields)), scratch, beat)
    _report(result, fields, problems)
    return not result.errors


def read_harness_tasks(
    fields: dict[str, str],
    folder: Path,
    scratch: Path,
    problems: Problems,
    beat: Callable[[], None],
    *,
    limit: int | None,
) -> HarnessItems:
    """Store the tasks' data below `folder` and return their items; report the tasks that cannot be measured.

    Args:
        fields: of the manifest, by the task's name.
        folder: gets one folder a task.
        scratch: for the libraries' caches.
        problems: gets the sentences.
        beat: called during the download.
        limit: items a task; None: all.
    """
    request = SnapshotRequest(names=tuple(fields), limit=limit, folder=str(folder))
    result = _run(request, scratch, beat)
    _report(result, fields, problems)
    harness_items = HarnessItems()
    for name, task in result.tasks.items():
        harness_items.items += [
            EvaluationItem(name, question, answer, choices=choices)
            for question, answer, choices in task.items
        ]
        harness_items.counts[name] = len(task.items)
        harness_items.resolved += task.resolved
    return harness_items


def _report(result: SnapshotResult, fields: dict[str, str], problems: Problems) -> None:
    for name, sentence in result.errors.items():
        problems.add(f"{fields[name]}: {sentence}")


def _run(request: SnapshotRequest, scratch: Path, beat: Callable[[], None]) -> SnapshotResult:
    environment = {"HF_HOME": str(scratch / "hub"), "DATASETS_VERBOSITY": "error"}
    process = run_module(_MODULE, [request.model_dump_json()], environment, beat)
    # Libraries may print lines of their own before the result.
    lines = process.output.strip().split("\n")
    if process.returncode == 0 and lines[-1]:
        return SnapshotResult.model_validate(json.loads(lines[-1]))
    sentence = f"lm-evaluation-harness failed to list its tasks or load their data ({process.last_error})"
    return SnapshotResult(errors=dict.fromkeys(request.names, sentence))
