"""Runs a piece with `dapt run` and makes a record of what it measured; an interrupted piece continues."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from dapt_contract.measure import Measure
from dapt_operator.api.v1alpha1.conditions import GATES_BREACHED, STALLED, find_condition
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.cli.display.results import read_results
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.run_folder import RunFolder
from science import store
from science.real.manifests import manifest
from science.real.pieces import Piece, with_settings

_SECONDS: Final = "science-seconds"
"""File with the seconds of the calls before this one."""


class PieceError(Exception):
    """A piece ended without anything that can be recorded."""


def perform(piece: Piece, folder: Path, data: Path, model: str | None = None) -> dict[str, Any]:
    """Run a piece, remove its run, and return its record.

    Args:
        piece: what is run.
        folder: of all runs; what an interrupted call left there is used.
        data: folder of the texts.
        model: source of the base model; None: the one among the data.

    Raises:
        PieceError: it ended neither with a model nor because nothing passes the gates.
    """
    path, run = folder / f"{piece.name}.yaml", RunFolder(folder / piece.name)
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump_all(manifest(piece, data, folder / f"{piece.name}-model", model), file)
    command = [str(Path(sys.executable).with_name("dapt")), "run", str(path)]
    started, spent = time.monotonic(), run.path / _SECONDS
    try:
        ended = subprocess.run([*command, "--runs-dir", str(folder)], check=False, stdout=sys.stderr)
    finally:
        seconds = time.monotonic() - started + (float(spent.read_text()) if spent.is_file() else 0.0)
        if run.path.is_dir():
            spent.write_text(f"{seconds:.0f}")
    try:
        status = run.status()
    except UserError:
        raise PieceError(f"dapt run of {piece.name} ended with {ended.returncode} before it began") from None
    stalled = find_condition(status.conditions, STALLED)
    is_breached = stalled is not None and stalled.status == "True" and stalled.reason == GATES_BREACHED
    if ended.returncode != 0 and not is_breached:
        raise PieceError(f"dapt run of {piece.name} ended with {ended.returncode}; its folder is {run.path}")
    record = with_settings(piece, record_of(status, measures_of(run, status), seconds))
    for made in (run.path, folder / f"{piece.name}-model"):
        shutil.rmtree(made, ignore_errors=True)
    path.unlink()
    return record


def measures_of(run: RunFolder, status: DomainAdaptationStatus) -> dict[str, Measure]:
    """Return what was measured of the base model and of the final one."""
    return dict(read_results(run.work, status).measures)


def record_of(
    status: DomainAdaptationStatus, measures: Mapping[str, Measure], seconds: float
) -> dict[str, Any]:
    """Return a record of plain values; without a final model where nothing passes the gates."""
    resolved = status.resolved
    return {
        "seconds": round(seconds),
        "machine": store.machine(),
        "replay": resolved.replay_fraction if resolved is not None else None,
        "rate": resolved.learning_rate if resolved is not None else None,
        "attempts": len(status.attempts),
        "steps": sum(attempt.total_steps or 0 for attempt in status.attempts),
        "chosen": status.selected.id if status.selected is not None else None,
        "base": measure_row(measures["base"]),
        "final": measure_row(measures["final"]) if "final" in measures else None,
    }


def measure_row(measure: Measure) -> dict[str, Any]:
    """Return losses in nats on half B with their paired errors, and scores with those of their differences."""
    sides = {"domain": measure.domain.b, "general": measure.general.b}
    return {
        **{f"{name}_b": half.loss_nats for name, half in sides.items()},
        **{f"{name}_b_error": half.difference_standard_error_nats for name, half in sides.items()},
        "digest": measure.digest,
        "scores": {
            score.name: [
                score.side,
                score.items,
                score.score,
                score.difference,
                score.difference_standard_error,
            ]
            for score in measure.scores
        },
    }
