"""Gives each warning of a run once, as a whole sentence: the status has some of them cut short."""

from __future__ import annotations

from pathlib import Path

from dapt_contract.stages.prepare import PrepareReport
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.report.inputs import find_stage_report, read_reports
from dapt_operator.report.summary import whole_warnings


class WarningLines:
    """Remembers what was shown."""

    def __init__(self, work: Path) -> None:
        """Begin with nothing shown. work: the work volume, where the report of prepare is."""
        self._work = work
        self._seen: tuple[str, ...] = ()
        self._shown: set[str] = set()

    def new(self, status: DomainAdaptationStatus) -> list[str]:
        """Return the warnings that were not returned before."""
        seen = tuple(status.plan.warnings) if status.plan is not None else ()
        if seen == self._seen:  # nothing is read while nothing is new
            return []
        self._seen = seen
        prepare = find_stage_report(PrepareReport, read_reports(self._work), "prepare")
        sentences = whole_warnings(seen, prepare.facts.warnings if prepare is not None else ())
        fresh = [sentence for sentence in sentences if sentence not in self._shown]
        self._shown.update(fresh)
        return fresh
