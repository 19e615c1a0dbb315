"""Reads what a report is made of: the status, the spec, and every finished stage's report on the work volume."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

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

NO_ANSWER: Final = "(nothing)"
"""Text for an empty answer of a model."""
_STAGE_FOLDER = re.compile(r"(?P<stage>[a-z_]+)-a(?P<attempt>[0-9]+)(-(?P<candidate>.+))?")

SomeReport = TypeVar("SomeReport", bound=Contract)


class ReportError(ValueError):
    """There is no status to report on, or it cannot be read, or the page cannot be written."""


class ReportKey(NamedTuple):
    """What a stage's report is about."""

    kind: str
    attempt: int
    candidate: str
    """Id of the candidate; empty for a stage that is about none."""


@dataclass(frozen=True)
class ReportInputs:
    """Everything that is known of a run; None and empty where it has not come so far."""

    name: str
    status: DomainAdaptationStatus
    spec: DomainAdaptationSpec | None = None
    prepare: PrepareReport | None = None
    baseline: BaselineReport | None = None
    pretrains: Mapping[int, PretrainReport] = field(default_factory=dict)
    """Reports of pretraining, by attempt."""
    blends: Mapping[int, tuple[BlendRow, ...]] = field(default_factory=dict)
    """Perplexities of averages and interpolations, by attempt."""
    evaluations: Mapping[str, EvaluateReport] = field(default_factory=dict)
    """Reports of evaluations, by candidate."""
    finetune: FinetuneReport | None = None
    align: AlignReport | None = None
    verify: VerifyReport | None = None
    publish: PublishReport | None = None
    run_seconds: float | None = None
    """Time of all invocations of a local run; None where it is not known."""
    is_stopped: bool = False
    """Whether no process works on a local run that has not ended."""
    candidates: tuple[Candidate, ...] = ()
    """All candidates by attempt, in the order of their steps, with the gates' verdicts."""

    @property
    def pretrain(self) -> PretrainReport | None:
        """Report of the attempt that the chosen candidate comes from, else of the newest."""
        chosen = next((row.attempt for row in self.status.candidates if row.id == self.chosen_id), None)
        return self.pretrains.get(chosen or max(self.pretrains, default=1))

    @property
    def base(self) -> Measure | None:
        """The frozen base model's measure."""
        return self.baseline.facts.measure if self.baseline else None

    @property
    def chosen_id(self) -> str | None:
        """Id of the selected candidate."""
        return self.status.selected.id if self.status.selected else None

    @property
    def chosen(self) -> Measure | None:
        """The selected candidate's measure, with scores where it has any."""
        return next((row.measure for row in self.candidates if row.id == self.chosen_id), None)

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
        """Base, chosen, fine-tuned (where preference tuning came after it) and final, as far as they exist."""
        compared = {row.name: row.measure for row in self.verify.measures} if self.verify else {}
        measures = (
            ("base", self.base),
            ("chosen", self.chosen),
            ("finetuned", compared.get("finetuned")),
            ("final", self.final),
        )
        return tuple((name, measure) for name, measure in measures if measure is not None)


def read_inputs(
    status: Mapping[str, Any],
    resource: Mapping[str, Any],
    work: Path,
    run_seconds: float | None = None,
) -> ReportInputs:
    """Return what is known of one adaptation, by its status, its resource and its work volume.

    Raises:
        ReportError: the status does not fit its model.
    """
    metadata = resource.get("metadata")
    name = str((metadata if isinstance(metadata, Mapping) else {}).get("name") or "adaptation")
    parsed_status = _parse_status(name, status)
    spec = _parse_spec(resource.get("spec"))
    reports = read_reports(work)
    chosen = parsed_status.selected.id if parsed_status.selected else None

    # The ledger has the facts of stages whose report is not on the volume; a report has more, so it goes first.
    facts = read_facts(parsed_status.ledger) if parsed_status.ledger else Facts()
    prepare = find_stage_report(PrepareReport, reports, "prepare")
    if prepare is None and facts.prepare is not None:
        prepare = PrepareReport(facts=facts.prepare)
    baseline = find_stage_report(BaselineReport, reports, "baseline")
    if baseline is None and facts.baseline is not None:
        baseline = BaselineReport(facts=facts.baseline)
    pretrains = {number: PretrainReport(facts=pretrain) for number, pretrain in facts.pretrains.items()}
    pretrains |= _pretrains(reports)
    evaluations = {
        key.candidate: report
        for key, report in reports.items()
        if key.kind == "evaluate" and isinstance(report, EvaluateReport)
    }
    facts = replace(
        facts,
        prepare=prepare.facts if prepare else None,
        baseline=baseline.facts if baseline else None,
        pretrains={number: report.facts for number, report in pretrains.items()},
        measures={
            **facts.measures,
            **{candidate: report.facts.measure for candidate, report in evaluations.items()},
        },
    )
    return ReportInputs(
        name=name,
        status=parsed_status,
        spec=spec,
        prepare=prepare,
        baseline=baseline,
        pretrains=pretrains,
        blends=facts.blends,
        evaluations=evaluations,
        finetune=find_stage_report(FinetuneReport, reports, "finetune", chosen),
        align=find_stage_report(AlignReport, reports, "align", chosen),
        verify=find_stage_report(VerifyReport, reports, "verify", chosen),
        run_seconds=run_seconds,
        publish=find_stage_report(PublishReport, reports, "publish", chosen),
        candidates=candidates(spec, facts) if spec else (),
    )


def _parse_status(name: str, status: Mapping[str, Any]) -> DomainAdaptationStatus:
    try:
        return DomainAdaptationStatus.model_validate(status)
    except ValidationError as error:
        first = error.errors()[0]
        field_path = ".".join(str(part) for part in first["loc"]) or "status"
        raise ReportError(f"{name}: status cannot be read: {field_path}: {first['msg']}") from error


def _parse_spec(value: object) -> DomainAdaptationSpec | None:
    try:
        return DomainAdaptationSpec.model_validate(value) if value else None
    except ValidationError:
        return None  # another version wrote it: the page is drawn without its gates


def read_reports(work: Path) -> dict[ReportKey, Contract]:
    """Return the report of every stage that has finished."""
    reports: dict[ReportKey, Contract] = {}
    for folder in sorted((work / STAGES).glob("*")):
        match = _STAGE_FOLDER.fullmatch(folder.name)
        if match is None or match["stage"] not in KINDS:
            continue
        try:
            report = find_report(work, f"{STAGES}/{folder.name}", match["stage"])
        except OSError:
            continue  # not readable by this user
        if report is not None:
            key = ReportKey(match["stage"], int(match["attempt"]), match["candidate"] or "")
            reports[key] = report
    return reports


def _pretrains(reports: Mapping[ReportKey, Contract]) -> dict[int, PretrainReport]:
    return {
        key.attempt: report
        for key, report in sorted(reports.items())
        if key.kind == "pretrain" and isinstance(report, PretrainReport)
    }


def find_stage_report(
    report_type: type[SomeReport],
    reports: Mapping[ReportKey, Contract],
    kind: str,
    candidate: str | None = None,
) -> SomeReport | None:
    """Return the report of a kind of stage that is about this candidate and no other; None before it has finished.

    Args:
        report_type: its class.
        reports: of all stages.
        kind: of the stage.
        candidate: its id, which names the attempt too; None for a stage that is about no candidate.
    """
    for key, report in reports.items():
        if key.kind == kind and key.candidate == (candidate or "") and isinstance(report, report_type):
            return report
    return None
