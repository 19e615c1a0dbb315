"""Results of the base model, found again by the digest of everything that decides them.

Any finished baseline on the work volume is looked at, of whatever adaptation and attempt: its report carries the key,
so nothing is written outside the folder of the try that measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dapt_contract.envelope import digest_of
from dapt_contract.layout import HARNESS, HELD_OUT, MODEL, PROBES, STAGES, TASKS
from dapt_contract.measure import Measure
from dapt_contract.stage_file import find_report
from dapt_contract.stages.baseline import BaselineReport
from dapt_contract.stages.common import EvaluationConfig
from dapt_contract.stages.evaluate import EvaluateReport
from dapt_trainer.data.harness.data import TASK_FILE
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.items import Item, read_items

_LIBRARIES = ("dapt", "torch", "transformers", "tokenizers", "lm_eval")


def results_key(
    work: Path, evaluation: EvaluationConfig, *, weights_digest: str, device: str, tokenizer: str = MODEL
) -> str:
    """Digest of model, data and settings of a measurement.

    Args:
        work: root of the work volume.
        evaluation: what is measured.
        weights_digest: of the model.
        device: `cpu` or `cuda`: they compute at different precision.
        tokenizer: folder of the tokenizer, relative to the volume.
    """
    files = {str(path.relative_to(work)): sha256_of_file(path) for path in _read(work, evaluation, tokenizer)}
    sources = [task.name for task in evaluation.tasks if task.source is not None]
    settings = evaluation.model_dump(mode="json")
    for entry in (*settings["tasks"], *settings["probes"]):
        entry.pop("source", None)  # the content counts, not where it came from
    return digest_of(
        {
            "weights": weights_digest,
            "files": files,
            "custom": sources,
            "settings": settings,
            "device": device,
            "libraries": {name: version(name) for name in _LIBRARIES},
        }
    )


def kept_results(work: Path, key: str) -> tuple[BaselineReport, tuple[Item, ...], str] | None:
    """A finished baseline with this key: its report, its items and its lineage folder; None when there is none."""
    for folder in sorted((work / STAGES).glob("*")):
        lineage = folder.relative_to(work).as_posix()
        report = find_report(work, lineage, "baseline")
        if not isinstance(report, BaselineReport) or report.key != key:
            continue
        try:
            return report, read_items(work / report.items_path), lineage
        except InputError:
            continue  # its items were cleaned away
    return None


def _read(work: Path, evaluation: EvaluationConfig, tokenizer: str) -> Iterator[Path]:
    yield from sorted((work / HELD_OUT).glob("*.jsonl"))
    yield from sorted((work / tokenizer).glob("tokenizer*.json"))
    for task in evaluation.tasks:
        own = task.source is None
        yield work / HARNESS / task.name / TASK_FILE if own else work / TASKS / f"{task.name}.jsonl"
    for probe in evaluation.probes:
        yield work / PROBES / f"{probe.name}.jsonl"


def found_by_all(ranks: Any, found: bool) -> bool:
    """Whether every rank found them; a baseline that finishes meanwhile may be seen by some alone."""
    return bool(found) if ranks.world_size == 1 else ranks.maximum(float(not found)) == 0.0


def base_items(work: Path, lineage: str) -> tuple[Item, ...]:
    """The items that the baseline below a lineage folder stored.

    Raises:
        InputError: there is no finished baseline, or its items cannot be read.
    """
    report = find_report(work, lineage, "baseline")
    if not isinstance(report, BaselineReport):
        raise InputError(f"{work / lineage}: no finished baseline to compare with; run baseline first")
    return read_items(work / report.items_path)


def measured_before(work: Path, lineages: Iterable[str]) -> dict[str, Measure]:
    """Measures of baselines and evaluations by digest; folders without a finished report are passed over."""
    found: dict[str, Measure] = {}
    for lineage in lineages:
        for kind in ("baseline", "evaluate"):
            report = find_report(work, lineage, kind)
            if isinstance(report, BaselineReport | EvaluateReport):
                found[report.facts.measure.digest] = report.facts.measure
    return found
