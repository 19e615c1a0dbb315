"""What earlier stages measured: the base model's items, and measures by digest of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dapt_contract.metric import Measure
from dapt_contract.stage_file import find_report
from dapt_contract.stages.evaluate import BaselineReport, EvaluateReport
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.items import Item, read_items


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
