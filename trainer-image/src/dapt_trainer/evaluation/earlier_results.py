"""Finds earlier results of the same model on the work volume, so that nothing is measured twice.

Results of the base model are found by the digest of everything that decides them. Every finished baseline on the
volume is considered, of any adaptation and attempt: its report holds the key, so a run writes nothing outside its own
folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from dapt_contract.envelope import digest_of
from dapt_contract.layout import HARNESS, HELD_OUT, MODEL, PROBES, STAGES, TASKS, stage_folder
from dapt_contract.measure import Measure
from dapt_contract.stage_file import find_report
from dapt_contract.stages.baseline import BaselineReport
from dapt_contract.stages.common import EvaluationConfig
from dapt_contract.stages.evaluate import EvaluateReport
from dapt_contract.version import PRODUCT_VERSION
from dapt_trainer.data.harness.data import TASK_FILE
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.base_model.document_losses import DocumentLoss, read_losses
from dapt_trainer.evaluation.items import Item, read_items

_LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval")
"""Libraries whose other versions may compute other numbers."""


def results_key(
    work: Path, evaluation: EvaluationConfig, *, weights_digest: str, device: str, tokenizer: str = MODEL
) -> str:
    """Return the digest of model, data, settings and libraries of a measurement.

    Args:
        work: root of the work volume.
        evaluation: what is measured.
        weights_digest: of the model.
        device: `cpu` or `cuda`: they compute at different precision.
        tokenizer: folder of the tokenizer, relative to the volume.
    """
    paths = _files_of_measurement(work, evaluation, tokenizer)
    files = {str(path.relative_to(work)): sha256_of_file(path) for path in paths}
    custom_tasks = [task.name for task in evaluation.tasks if task.source is not None]
    settings = evaluation.model_dump(mode="json")
    for entry in (*settings["tasks"], *settings["probes"]):
        entry.pop("source", None)  # the content of the file counts, not the URI that it came from
    return digest_of(
        {
            "weights": weights_digest,
            "files": files,
            "custom": custom_tasks,
            "settings": settings,
            "device": device,
            "libraries": {"dapt": PRODUCT_VERSION} | {name: version(name) for name in _LIBRARIES},
        }
    )


def kept_results(
    work: Path, key: str, signing_key: bytes = b""
) -> tuple[BaselineReport, tuple[Item, ...], str] | None:
    """Return report, items and lineage folder of a finished baseline with this key; None when there is none.

    Args:
        work: root of the work volume.
        key: `results_key`.
        signing_key: that must have signed the report; empty: none is checked.
    """
    for folder in sorted((work / STAGES).glob("*")):
        lineage = folder.relative_to(work).as_posix()
        report = find_report(work, lineage, "baseline", key=signing_key)
        if not isinstance(report, BaselineReport) or report.key != key:
            continue
        try:
            items = read_items(work, report.items_path, report.items_digest)
            losses_of_report(work, report)
            return report, items, lineage
        except InputError:
            continue  # its items or losses were removed to free space, or changed
    return None


def _files_of_measurement(work: Path, evaluation: EvaluationConfig, tokenizer: str) -> Iterator[Path]:
    """Yield the files that decide a measurement, the weights apart."""
    yield from sorted((work / HELD_OUT).glob("*.jsonl"))
    yield from sorted((work / tokenizer).glob("tokenizer*.json"))
    for task in evaluation.tasks:
        if task.source is None:
            yield work / HARNESS / task.name / TASK_FILE
        else:
            yield work / TASKS / f"{task.name}.jsonl"
    for probe in evaluation.probes:
        yield work / PROBES / f"{probe.name}.jsonl"


def found_by_all(ranks: Ranks, found: bool) -> bool:
    """Return whether every rank found the results.

    Another run's baseline may finish between the searches of two ranks. Ranks that disagreed would wait for each other
    in different collectives.
    """
    return bool(found) if ranks.world_size == 1 else ranks.maximum(float(not found)) == 0.0


def base_items(
    work: Path, lineage: str, expected_digest: str | None = None, signing_key: bytes = b""
) -> tuple[Item, ...]:
    """Read the items that the baseline in a lineage folder stored.

    Args:
        work: root of the work volume.
        lineage: folder of the baseline.
        expected_digest: of the items, as the baseline reported it; None: as its report on the volume says.
        signing_key: that must have signed the report; empty: none is checked.

    Raises:
        InputError: there is no finished baseline, or its items cannot be read.
    """
    # A digest that was reported covers the items, whoever wrote the report that names their file.
    report = find_report(work, lineage, "baseline", key=b"" if expected_digest else signing_key)
    if not isinstance(report, BaselineReport):
        raise InputError(f"{work / lineage}: no finished baseline to compare with; run baseline first")
    return read_items(work, report.items_path, expected_digest or report.items_digest)


def losses_of_report(work: Path, report: BaselineReport) -> tuple[DocumentLoss, ...]:
    """Read the base model's losses by document that a report names; none where it is from before they were stored.

    Raises:
        InputError: they cannot be read, or are others.
    """
    if not report.losses_path:
        return ()
    return read_losses(work, report.losses_path, report.facts.losses_digest)


def base_losses(
    work: Path, expected_digest: str | None, lineage: str = stage_folder("baseline")
) -> tuple[DocumentLoss, ...]:
    """Read the base model's losses by document.

    Args:
        work: root of the work volume.
        expected_digest: of the losses, as the baseline reported it; None: it has stored none, and nothing is read.
        lineage: folder of the baseline.

    Raises:
        InputError: there is no finished baseline, or its losses cannot be read.
    """
    if expected_digest is None:
        return ()
    report = find_report(work, lineage, "baseline")
    if not isinstance(report, BaselineReport) or not report.losses_path:
        raise InputError(f"{work / lineage}: no baseline with losses to compare with; run baseline first")
    return read_losses(work, report.losses_path, expected_digest)


def measured_before(work: Path, lineages: Iterable[str], signing_key: bytes = b"") -> dict[str, Measure]:
    """Return the measures of finished baselines and evaluations in lineage folders, by the digest of their model.

    Args:
        work: root of the work volume.
        lineages: their folders.
        signing_key: that must have signed the reports; empty: none is checked.
    """
    measures: dict[str, Measure] = {}
    for lineage in lineages:
        for kind in ("baseline", "evaluate"):
            report = find_report(work, lineage, kind, key=signing_key)
            if isinstance(report, BaselineReport | EvaluateReport):
                measures[report.facts.measure.digest] = report.facts.measure
    return measures
