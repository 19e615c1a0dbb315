"""Says which files of a finished run were changed since it read them: it reads none of them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus, StageStatus
from dapt_operator.api.validation.hints.advice import leaves
from dapt_operator.cli.inputs.manifests import FILE_SCHEME
from dapt_operator.cli.inputs.source_sizes import local_files
from dapt_operator.cli.run_folder import RunFolder
from dapt_operator.cli.spec_changes import advice_to_run_again

_READ_BY: Final = {
    "corpus": "prepare",
    "evaluation": "baseline",
    "finetuning": "finetune",
    "preference": "align",
}
"""Block with sources -> the stage from whose start on a change of their files is not followed."""


def changed_files(
    folder: RunFolder, spec: DomainAdaptationSpec, status: DomainAdaptationStatus, manifest: Path
) -> str:
    """Return in one sentence which files were changed since and what to do; empty where none is known to be.

    A file counts by its modification time, so one that was only touched or copied counts too.
    """
    changed = sorted(set(_changed(spec, status.stages)))
    if not changed:
        return ""
    more = f" and {len(changed) - 1:,} more were" if len(changed) > 1 else " was"
    again = "them" if len(changed) > 1 else "it"
    return (
        f"{changed[0]}{more} changed after this run had read {again}, and nothing of that is done:"
        f" {advice_to_run_again(folder, spec, manifest)}"
    )


def _changed(spec: DomainAdaptationSpec, stages: Sequence[StageStatus]) -> Iterator[str]:
    blocks = spec.to_dict()
    for block, kind in _READ_BY.items():
        starts = [stage.start_time for stage in stages if stage.kind == kind and stage.start_time is not None]
        if not starts or block not in blocks:
            continue
        # Times in a status have no fractions of a second.
        latest = datetime.fromisoformat(max(starts)).timestamp() + 1
        for path, value in leaves(blocks[block]):
            if path[-1] == "source" and isinstance(value, str) and value.startswith(FILE_SCHEME):
                for file in local_files(value).files:
                    if file.modified_ns / 1e9 >= latest:
                        yield file.path
