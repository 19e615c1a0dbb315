"""What a report is made of: the status, the spec, and every finished stage's report on the work volume."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dapt_contract.base import Contract
from dapt_contract.layout import STAGES
from dapt_contract.measure import Measure
from dapt_contract.stage_file import find_report
from dapt_contract.stages import KINDS
from dapt_contract.stages.align import AlignReport
from dapt_contract.stages.baseline import BaselineReport
from dapt_contract.stages.blend import BlendRow
from dapt_contract.stages.evaluate import EvaluateReport
from dapt_contract.stages.finetune import FinetuneReport
from dapt_contract.stages.prepare import PrepareReport
from dapt_contract.stages.pretrain import PretrainReport
from dapt_contract.stages.publish import PublishReport
from dapt_contract.stages.verify import Sample, VerifyReport
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.plan.ledger.stage_facts import Facts, read_facts
from dapt_operator.plan.selection.candidates import Candidate, candidates

_LINEAGE = re.compile(r"(?P<stage>[a-z]+)-a(?P<attempt>[0-9]+)(-(?P<candidate>.+))?")


class ReportError(ValueError):
    """There is nothing that a report could be drawn from."""


@dataclass(frozen=True)
class Material:
    """Everything that is known of a run; None and empty where it has not come so far."""

    name: str
    status: DomainAdaptationStatus
    spec: DomainAdaptationSpec | None = None
    prepare: PrepareReport | None = None
    baseline: BaselineReport | None = None
    pretrains: Mapping[int, PretrainReport] = field(default_factory=dict)
    """By attempt."""
    blends: Mapping[int, tuple[BlendRow, ...]] = field(default_factory=dict)
    """Perplexities of averages and interpolations, by attempt."""
    evaluations: Mapping[str, EvaluateReport] = field(default_factory=dict)
    """By candidate."""
    finetune: FinetuneReport | None = None
    align: AlignReport | None = None
    verify: VerifyReport | None = None
    publish: PublishReport | None = None
    candidates: tuple[Candidate, ...] = ()
    """By attempt, in the order of their steps, with the gates' verdicts."""

    @property
    def pretrain(self) -> PretrainReport | None:
        """Of the attempt that the chosen candidate comes from, else of the newest."""
        chosen = next((one.attempt for one in self.status.candidates if one.id == self.chosen_id), None)
        return self.pretrains.get(chosen or max(self.pretrains, default=1))

    @property
    def base(self) -> Measure | None:
        """The frozen base model's measure."""
        return self.baseline.facts.measure if self.baseline else None

    @property
    def chosen_id(self) -> str | None:
        """The selected candidate."""
        return self.status.selected.id if self.status.selected else None

    @property
    def chosen(self) -> Measure | None:
        """The selected candidate's measure, with scores where it has any."""
        return next((one.measure for one in self.candidates if one.id == self.chosen_id), None)

    @property
    def final(self) -> Measure | None:
        """The finished model's measure, where tuning made another model of the chosen one."""
        if self.verify is None:
            return None
        digests = dict(self.verify.facts.digests)
        return self.verify.facts.final if digests.get("final") != digests.get("chosen") else None

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Prompts with each model's answer."""
        return self.verify.samples if self.verify else ()

    @property
    def named_measures(self) -> tuple[tuple[str, Measure], ...]:
        """Base, chosen, fine-tuned (where preference tuning came after it) and final, as far as they are there."""
        compared = {one.name: one.measure for one in self.verify.measures} if self.verify else {}
        tuned = compared.get("finetuned")
        named = (("base", self.base), ("chosen", self.chosen), ("finetuned", tuned), ("final", self.final))
        return tuple((name, measure) for name, measure in named if measure is not None)


def gather(status: Mapping[str, Any], resource: Mapping[str, Any], work: Path) -> Material:
    """Collect the material of one adaptation.

    Raises:
        ReportError: the status does not fit its model.
    """
    name = str((resource.get("metadata") or {}).get("name") or "adaptation")
    try:
        known = DomainAdaptationStatus.model_validate(status)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "status"
        raise ReportError(f"{name}: status cannot be read: {place}: {first['msg']}") from error
    spec = _spec(resource.get("spec"))
    reports = _reports(work)
    prepare = _of(PrepareReport, reports, "prepare")
    baseline = _of(BaselineReport, reports, "baseline")
    pretrains = _pretrains(reports)
    evaluations = {
        candidate: report
        for (kind, _, candidate), report in reports.items()
        if kind == "evaluate" and isinstance(report, EvaluateReport)
    }
    chosen = known.selected.id if known.selected else None
    told = read_facts(known.ledger) if known.ledger else Facts()
    attempt = next((one.attempt for one in known.candidates if one.id == chosen), None) or known.attempt or 1
    if baseline is None and told.baseline is not None:
        baseline = BaselineReport(facts=told.baseline)
    if prepare is None and told.prepare is not None:
        prepare = PrepareReport(facts=told.prepare)
    pretrains = {number: PretrainReport(facts=one) for number, one in told.pretrains.items()} | pretrains
    facts = replace(
        told,
        prepare=prepare.facts if prepare else None,
        baseline=baseline.facts if baseline else None,
        pretrains={number: report.facts for number, report in pretrains.items()},
        measures={**told.measures, **{name: one.facts.measure for name, one in evaluations.items()}},
    )
    return Material(
        name=name,
        status=known,
        spec=spec,
        prepare=prepare,
        baseline=baseline,
        pretrains=pretrains,
        blends=facts.blends,
        evaluations=evaluations,
        finetune=_of(FinetuneReport, reports, "finetune", attempt, chosen),
        align=_of(AlignReport, reports, "align", attempt, chosen),
        verify=_of(VerifyReport, reports, "verify", attempt, chosen),
        publish=_of(PublishReport, reports, "publish", attempt, chosen),
        candidates=candidates(spec, facts) if spec else (),
    )


def _spec(value: Any) -> DomainAdaptationSpec | None:
    try:
        return DomainAdaptationSpec.model_validate(value) if value else None
    except ValidationError:
        return None  # written by another version: the page does without its gates


def _pretrains(reports: Mapping[_Key, Contract]) -> dict[int, PretrainReport]:
    return {
        attempt: report
        for (kind, attempt, _), report in sorted(reports.items())
        if kind == "pretrain" and isinstance(report, PretrainReport)
    }


_Key = tuple[str, int, str]
_Report = TypeVar("_Report", bound=Contract)


def _reports(work: Path) -> dict[_Key, Contract]:
    """Every lineage's finished report, by (kind, attempt, candidate)."""
    found: dict[_Key, Contract] = {}
    for folder in sorted((work / STAGES).glob("*")):
        match = _LINEAGE.fullmatch(folder.name)
        if match is None or match["stage"] not in KINDS:
            continue
        report = find_report(work, f"{STAGES}/{folder.name}", match["stage"])
        if report is not None:
            found[match["stage"], int(match["attempt"]), match["candidate"] or ""] = report
    return found


def _of(
    model: type[_Report],
    reports: Mapping[_Key, Contract],
    kind: str,
    attempt: int = 1,
    candidate: str | None = None,
) -> _Report | None:
    """The report of a kind; that of the candidate where lineages have one."""
    for key in ((kind, attempt, candidate or ""), (kind, attempt, "")):
        report = reports.get(key)
        if isinstance(report, model):
            return report
    return None
