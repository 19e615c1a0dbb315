"""Draws the report: one self-contained HTML page and its charts as PNG, from the status and the stages' reports.

It can be drawn at any time: the page says what a run has not reached yet in the place where it will appear. Nothing on
the page comes from outside: style, charts and text are in the one file, and all text is escaped.

Exceptions: `ReportError` (a `ValueError`): there is no status to report on, or it cannot be read, or the page cannot be
written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.untrusted.regular_files import read_regular_file
from dapt_operator.api.validation.yaml_source import MAX_BYTES, ManifestError, load
from dapt_operator.cluster.local.invocations import read_invocations
from dapt_operator.cluster.local.object_files import MAX_OBJECT_BYTES
from dapt_operator.report.inputs import ReportError, ReportInputs, read_inputs
from dapt_operator.report.page import render

PAGE = "report.html"
PICTURES = "report"
"""Folder of the PNGs, in the folder of the page."""

__all__ = ["ReportError", "ReportInputs", "build_report", "draw_report"]


def build_report(folder: Path, *, is_stopped: bool = False) -> list[Path]:
    """Write the page of a local run into its folder: `report.html`, and PNGs below `report/`.

    Args:
        folder: with `status.yaml`, `objects/domainadaptation-NAME.json` and `work/`.
        is_stopped: whether no process works on the run; of a run that has ended it does not matter.

    Returns:
        The written files, the page first.

    Raises:
        ReportError: there is no status, or it cannot be read, or the page cannot be written.
    """
    resource = _read_status(folder / "status.yaml")
    stored = next(iter(sorted((folder / "objects").glob("domainadaptation-*.json"))), folder)
    try:
        spec = json.loads(read_regular_file(stored, MAX_OBJECT_BYTES)).get("spec") or {}
    except (OSError, ValueError, AttributeError, RecursionError):
        spec = {}  # the page is drawn without gates and the names of sources
    # Without a file of the invocations it is not known how long they took.
    run_seconds = read_invocations(folder).seconds or None
    inputs = read_inputs(
        resource.get("status") or {}, {**resource, "spec": spec}, folder / "work", run_seconds
    )
    return _write(replace(inputs, is_stopped=is_stopped), folder)


def draw_report(
    status: Mapping[str, Any],
    resource: Mapping[str, Any],
    work: Path,
    out: Path,
    run_seconds: float | None = None,
) -> list[Path]:
    """Write `report.html`, and PNGs below `report/`.

    Args:
        status: status of the adaptation, as in status.yaml.
        resource: metadata of the adaptation, and its spec where it is known.
        work: root of the work volume; may be missing.
        out: folder to write into.
        run_seconds: time of all invocations of a local run, where it is known.

    Returns:
        The written files, the page first.

    Raises:
        ReportError: the status cannot be read, or the files cannot be written.
    """
    return _write(read_inputs(status, resource, work, run_seconds), out)


def _write(inputs: ReportInputs, out: Path) -> list[Path]:
    """Write page and PNGs and return their paths, the page first."""
    page, pictures = render(inputs)
    written = [out / PAGE]
    if (out / PICTURES).is_symlink():
        raise ReportError(f"{out / PICTURES}: a link and not a folder, so no picture is written; remove it")
    try:
        write_bytes_atomically(out / PAGE, page.encode())
        for name, png in pictures.items():
            written.append(out / PICTURES / f"{name}.png")
            write_bytes_atomically(written[-1], png)
    except OSError as error:
        raise ReportError(f"{error.filename or out}: cannot be written ({error.strerror})") from error
    return written


def _read_status(path: Path) -> dict[str, Any]:
    try:
        resource = load(read_regular_file(path, MAX_BYTES).decode(), str(path))[0].data
    except FileNotFoundError as error:
        raise ReportError(f"{path}: no run to report on; start one with dapt run") from error
    except (OSError, UnicodeDecodeError, ManifestError) as error:
        # Of text that is not YAML the parser's own error says more than ours, which stands for all of them.
        name = type(error.__context__ or error).__name__
        reason = (error.strerror if isinstance(error, OSError) else None) or name
        raise ReportError(f"{path}: cannot be read ({reason}); `dapt run` writes it again") from error
    if not isinstance(resource, dict):
        raise ReportError(f"{path}: not a status; `dapt run` writes it again")
    return resource
