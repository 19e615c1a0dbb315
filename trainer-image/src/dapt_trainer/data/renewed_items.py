"""Reads evaluation items again for a corpus that is finished and does not depend on them.

Where the text is cleaned of the items, other items are another corpus. Where it is not, only the items are replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dapt_contract.layout import DATA, HARNESS, ITEMS, MODEL, PROBES, TASKS
from dapt_contract.stages.prepare import PrepareConfig, PrepareReport
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.context import StageContext
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.packing.data_manifest import MANIFEST, DataManifest, write_manifest
from dapt_trainer.data.packing.prepared_files import digests_of_files
from dapt_trainer.data.packing.recorded_data import is_as_reported, is_same_corpus
from dapt_trainer.data.results.move_into_place import move_folder
from dapt_trainer.data.results.reporting import RunNotes
from dapt_trainer.data.stage_inputs import harness_has_all_tasks, read_evaluation, write_evaluation
from dapt_trainer.errors import InputError

_FOLDERS = (TASKS, HARNESS, PROBES, ITEMS)


def can_be_kept(
    finished: DataManifest,
    config: PrepareConfig,
    context: StageContext,
    notes: RunNotes,
    beat: Callable[[], None],
) -> bool:
    """Return whether finished data on the work volume is what prepare reported; where it is not, note why it is read.

    Args:
        finished: manifest of the data.
        config: of this run.
        context: of this run.
        notes: get a warning where the manifest is another one.
        beat: called now and then.
    """
    work, reported = context.work, config.prepared_digest
    if reported is not None and is_as_reported(work, finished, reported):
        return is_same_corpus(work, finished, beat)
    # No error: everything is made again from its sources. A run that was killed before it could report leaves such a
    # manifest too; but so can anybody who writes to the volume, and prepare has no key to sign what it leaves there.
    finding = (
        "is not the manifest that prepare reported"
        if reported
        else "was left by a prepare that did not report"
    )
    notes.warnings.append(
        f"{work / DATA / MANIFEST}: {finding}, so all sources were read again; unless prepare was interrupted, find "
        "out what else writes to the work volume."
    )
    return False


def with_current_items(
    finished: DataManifest, config: PrepareConfig, context: StageContext, beat: Callable[[], None]
) -> PrepareReport:
    """Return the report of a finished corpus with the evaluation items of this configuration.

    Args:
        finished: manifest of the corpus on the work volume.
        config: of this run; it makes the same corpus.
        context: of this run.
        beat: called now and then.

    Raises:
        InputError: what the user must correct in the items.
        OSError: the work volume cannot be written.
        StopRequested: SIGTERM.
    """
    if finished.inputs_digest == config.inputs_digest:
        return finished.report
    folder = context.try_folder / "items"
    remove_folder(folder)
    try:
        return _renewed(finished, config, context, folder, beat)
    finally:
        remove_folder(folder)


def _renewed(
    finished: DataManifest,
    config: PrepareConfig,
    context: StageContext,
    folder: Path,
    beat: Callable[[], None],
) -> PrepareReport:
    work, scratch, problems = context.work, folder / "scratch", Problems()
    scratch.mkdir(parents=True)
    for name in _FOLDERS:
        (folder / name).mkdir()  # so that a folder of which nothing is left is replaced too
    if not harness_has_all_tasks(config, scratch, problems, beat):
        raise InputError(*problems.sentences())
    tokenizer_json = (work / MODEL / "tokenizer.json").read_text(encoding="utf-8")
    evaluation = read_evaluation(config, folder / HARNESS, scratch, problems, beat, tokenizer_json)
    problems.raise_if_any()
    write_evaluation(folder, evaluation)
    for name in _FOLDERS:
        move_folder(folder / name, work / name, scratch)
    files = tuple(digests_of_files(work).items())
    of_items = {source for source, _ in evaluation.resolved}
    facts = finished.report.facts.model_copy(update={"task_items": tuple(evaluation.item_counts.items())})
    resolved = (pair for pair in finished.report.resolved_sources if pair[0] not in of_items)
    report = finished.report.model_copy(
        update={"facts": facts, "resolved_sources": (*resolved, *evaluation.resolved)}
    )
    # Last: a run that is killed before leaves a manifest that does not name these items, and the next reads them again.
    manifest = finished.model_copy(
        update={
            "inputs_digest": config.inputs_digest,
            "files": files,
            "report": report,
        }
    ).with_digest()
    write_manifest(work / DATA, manifest, run_key=context.stage.run.key)
    return manifest.report
