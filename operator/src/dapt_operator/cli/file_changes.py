"""Says which files of a run were changed since it read them where it reads none of them again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from dapt_client.documents import FILE_SCHEME
from dapt_operator.api.v1alpha1.conditions import FINISHED, find_condition
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus, StageStatus
from dapt_operator.api.validation.hints.advice import leaves
from dapt_operator.cli.inputs.source_sizes import local_files
from dapt_operator.cli.run_folder import RunFolder
from dapt_operator.cli.spec_changes import advice_to_run_again, advice_to_start_over

_READ_BY: Final = {
    "model": "prepare",
    "corpus": "prepare",
    "evaluation": "baseline",
    "finetuning": "finetune",
    "preference": "align",
}
"""Block with sources -> the stage from whose start on a change of their files is not followed."""
_FROZEN_BY: Final = _READ_BY | {"model": "baseline", "corpus": "baseline"}
"""Block with sources -> the stage from whose start on the files are not read again."""


def changed_files(
    folder: RunFolder, spec: DomainAdaptationSpec, status: DomainAdaptationStatus, manifest: Path
) -> str:
    """Return in one sentence which files were changed since and what to do; empty where none is known to be.

    Files of a run that goes on count once no stage will read them again.

    A file counts by its modification time, so one that was only touched or copied counts too.
    """
    finished = find_condition(status.conditions, FINISHED)
    is_finished = finished is not None and finished.status == "True"
    started = {stage.kind for stage in status.stages if stage.start_time is not None}
    frozen = {block for block, kind in _FROZEN_BY.items() if is_finished or kind in started}
    changed = sorted(set(_changed(spec, status.stages, frozen)))
    if not changed:
        return ""
    more = f" and {len(changed) - 1:,} more were" if len(changed) > 1 else " was"
    again = "them" if len(changed) > 1 else "it"
    advice = advice_to_run_again(folder, spec, manifest) if is_finished else advice_to_start_over(manifest)
    return (
        f"{changed[0]}{more} changed after this run had read {again}, and nothing of that is done: {advice}"
    )


def _changed(
    spec: DomainAdaptationSpec, stages: Sequence[StageStatus], frozen: Collection[str]
) -> Iterator[str]:
    blocks = spec.to_dict()
    for block, kind in _READ_BY.items():
        starts = [stage.start_time for stage in stages if stage.kind == kind and stage.start_time is not None]
        if not starts or block not in blocks or block not in frozen:
            continue
        # Times in a status have no fractions of a second.
        latest = datetime.fromisoformat(max(starts)).timestamp() + 1
        for path, value in leaves(blocks[block]):
            if path[-1] == "source" and isinstance(value, str) and value.startswith(FILE_SCHEME):
                for file, modified_seconds in _files_of(block, value):
                    if modified_seconds >= latest:
                        yield file


def _files_of(block: str, address: str) -> Iterator[tuple[str, float]]:
    """Yield the paths behind a `file://` address with their modification times in seconds since the epoch."""
    if block != "model":
        yield from ((file.path, file.modified_ns / 1e9) for file in local_files(address).files)
        return
    path = Path(address.removeprefix(FILE_SCHEME))
    with suppress(OSError):
        for file in path.iterdir() if path.is_dir() else (path,):
            if file.is_file():
                yield str(file), file.stat().st_mtime
