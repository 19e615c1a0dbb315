"""Runs tuning_data, which reads examples or pairs that were edited after prepare; the corpus stays as it is.

It takes the model, the evaluation items and the sequence length from the work volume, writes below its own run's folder
and moves the finished folder into place: killed at any moment and run again, it ends with the same files.
"""

from __future__ import annotations

import errno

from dapt_contract.layout import MODEL
from dapt_contract.stages.prepare import ModelFacts
from dapt_contract.stages.tuning_data import TuningDataConfig, TuningDataReport
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.context import StageContext
from dapt_trainer.data.base_model.facts import read_tokenizer
from dapt_trainer.data.base_model.files import FACTS
from dapt_trainer.data.dedup.contamination import contamination_index
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.measured_items import MeasuredItems, measured_items
from dapt_trainer.data.packing.data_manifest import read_manifest
from dapt_trainer.data.packing.recorded_data import require_recorded_data
from dapt_trainer.data.results.move_into_place import move_folder
from dapt_trainer.data.tuning_data import TuningModel, prepare_tuning_data, read_tuning_data
from dapt_trainer.errors import InfrastructureError, InputError, StopRequested


def run(config: TuningDataConfig, context: StageContext) -> TuningDataReport:
    """Read, render and write one kind of tuning data, and report all its problems at once.

    Raises:
        InputError: what the user must correct.
        InfrastructureError: the work volume is full.
        StopRequested: SIGTERM.
    """
    folder = context.try_folder / "prepared"
    try:
        remove_folder(folder)
        folder.mkdir(parents=True)
        return _run(config, context)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InfrastructureError(
            f"{context.work}: the work volume is full ({error.strerror}); enlarge it"
        ) from error
    finally:
        remove_folder(folder)


def _run(config: TuningDataConfig, context: StageContext) -> TuningDataReport:
    def heartbeat() -> None:
        if context.progress.stop_requested():
            raise StopRequested(
                "tuning_data was stopped before it finished; the next run reads everything again"
            )
        context.progress.heartbeat()

    context.progress.update(activity=f"reading {config.kind}")
    problems = Problems()
    data = read_tuning_data(config, problems, heartbeat)
    model = _model(config, context)
    items = measured_items(context.work, config) if config.decontaminate else MeasuredItems([])
    index = contamination_index(items.items)
    context.progress.update(activity=f"rendering {config.kind}")
    folder = context.try_folder / "prepared" / "data"
    report = prepare_tuning_data(data, model, index, folder, problems, heartbeat)
    problems.raise_if_any()
    # Renamed only when it is complete: a folder with this name is finished data.
    move_folder(folder, context.work / config.folder, context.try_folder / "prepared")
    warnings = (*report.warnings, *_unsearched(config, items.unknown_tasks))
    facts = report.facts.model_copy(update={"warnings": warnings})
    return report.model_copy(update={"facts": facts, "warnings": warnings})


def _unsearched(config: TuningDataConfig, tasks: tuple[str, ...]) -> tuple[str, ...]:
    if not tasks:
        return ()
    field = "spec.finetuning.data" if config.kind == "instructions" else "spec.preference.data"
    return (
        f"{field}: the items of {', '.join(tasks)} were not searched for, since the work volume was prepared by a "
        "version of dapt that did not keep them.",
    )


def _model(config: TuningDataConfig, context: StageContext) -> TuningModel:
    """Return what the base model on the volume gives.

    Raises:
        InputError: prepare has not finished, or its files are damaged or not those that it reported.
    """
    folder = context.work / MODEL
    manifest = require_recorded_data(context.work, config.prepared_digest) or read_manifest(context.work)
    try:
        facts = ModelFacts.model_validate_json((folder / FACTS).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / FACTS}: cannot be read ({type(error).__name__}); run prepare again"
        ) from error
    tokenizer = read_tokenizer(folder, str(folder))
    return TuningModel.of_folder(
        folder,
        tokenizer.end_of_text,
        packed_tokens=manifest.sequence_length_tokens,
        max_positions=facts.max_positions,
    )
