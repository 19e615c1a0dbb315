"""Compares the manifest of a finished run with what was run: where they differ, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from dapt_contract.untrusted.regular_files import read_regular_file
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.validation.problem import value_text
from dapt_operator.cli.run_folder import RunFolder
from dapt_operator.cluster.local.object_files import MAX_OBJECT_BYTES
from dapt_operator.plan.status.ended_spec import RESULT_BLOCKS

_MAX_SHOWN: Final = 5
_START_OVER: Final = (
    "`dapt run {manifest} --fresh` removes this run and starts over, another metadata.name keeps both"
)
_DECIDED_AGAIN: Final = ("spec.gates", "spec.selection")
"""Blocks whose other values `dapt rejudge` can judge from the recorded numbers."""


def differences(folder: RunFolder, spec: DomainAdaptationSpec, manifest: Path) -> str:
    """Return in one sentence where the manifest differs from what was run and what to do; empty where it does not.

    Blocks that decide neither the model nor where it is, such as suspend or resources, do not count.
    """
    run_spec = _spec_of_run(folder)
    changes = [] if run_spec is None else list(changed_fields(run_spec, spec))
    if not changes:
        return ""
    num_more = len(changes) - _MAX_SHOWN
    more = f" and {num_more} more" if num_more > 0 else ""
    advice = _START_OVER.format(manifest=manifest)
    if all(change.startswith(_DECIDED_AGAIN) for change in changes):
        advice += f", and `dapt rejudge {folder.name} {manifest}` shows what they would decide"
    if run_spec is not None and run_spec.output.destination == spec.output.destination:
        advice += _destination_advice(folder, spec.output.destination)
    return (
        f"{manifest}: differs from what was run, and nothing of that is done: {'; '.join(changes[:_MAX_SHOWN])}{more};"
        f" {advice}"
    )


def advice_to_run_again(folder: RunFolder, spec: DomainAdaptationSpec, manifest: Path) -> str:
    """Return how a finished run is run again from the same manifest."""
    return advice_to_start_over(manifest) + _destination_advice(folder, spec.output.destination)


def advice_to_start_over(manifest: Path) -> str:
    """Return how a run that has not published its model is begun again."""
    return _START_OVER.format(manifest=manifest)


def _destination_advice(folder: RunFolder, destination: str) -> str:
    """Return which of both ways needs another destination too: no run writes over the model of another one."""
    model = Path(destination.removeprefix("file://"))
    if destination.startswith("file://") and model.resolve().is_relative_to(folder.path.resolve()):
        return "; another name needs another output.destination too, since --fresh removes the model with its run"
    return "; both need another output.destination too, since this one holds the model"


def _spec_of_run(folder: RunFolder) -> DomainAdaptationSpec | None:
    """Return the spec that was run; None where another version wrote it or it is not there."""
    stored = next(iter(sorted((folder.path / "objects").glob("domainadaptation-*.json"))), None)
    if stored is None:
        return None
    try:
        return DomainAdaptationSpec.model_validate(
            json.loads(read_regular_file(stored, MAX_OBJECT_BYTES))["spec"]
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError):
        return None


def changed_fields(old: DomainAdaptationSpec, new: DomainAdaptationSpec) -> Iterator[str]:
    """Yield each field that differs, with both values: `spec.seed is 18 and was 17`.

    Both specs count with their defaults, so that writing a default changes nothing.
    """
    before, after = old.to_dict(), new.to_dict()
    for block in RESULT_BLOCKS:
        yield from _changes(f"spec.{block}", before.get(block), after.get(block))


def _changes(place: str, before: Any, after: Any) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            yield from _changes(f"{place}.{name}", before.get(name), after.get(name))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(f"{place}[{index}]", old, new)
    elif before is None:
        yield (
            f"{place} was added" if isinstance(after, dict) else f"{place} is {_text(after)} and was not set"
        )
    elif after is None:
        yield (
            f"{place} was removed"
            if isinstance(before, dict)
            else f"{place} is not set and was {_text(before)}"
        )
    else:
        yield f"{place} is {_text(after)} and was {_text(before)}"


def _text(value: Any) -> str:
    """Return a value as messages show it, but texts whole: two long paths may differ at their ends alone."""
    return repr(value) if isinstance(value, str) else value_text(value)
