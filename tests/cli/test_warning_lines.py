"""Each warning of a run is shown once, and whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_contract.stages.prepare import PrepareReport
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.cli.display import warning_lines
from dapt_operator.cli.display.warning_lines import WarningLines
from support.builders import prepare_facts

WHOLE = (
    "The base model has a chat template: start from the base model and fine-tune afterwards where you can."
)
CUT = "The base model has a chat template: start from the base model and fine-tune..."


def status(*warnings: str) -> DomainAdaptationStatus:
    return DomainAdaptationStatus.model_validate({"plan": {"warnings": list(warnings)}})


def test_a_cut_warning_is_shown_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = PrepareReport(facts=prepare_facts(warnings=(WHOLE, "little text")))
    monkeypatch.setattr(warning_lines, "find_stage_report", lambda *_: report)
    lines = WarningLines(tmp_path)
    assert lines.new(status("no finetuning")) == ["no finetuning", WHOLE, "little text"]
    assert lines.new(status("no finetuning", CUT, "more warnings in its report: 1")) == []


def test_without_a_report_the_status_is_shown_as_it_is(tmp_path: Path) -> None:
    lines = WarningLines(tmp_path)
    assert lines.new(DomainAdaptationStatus()) == []
    assert lines.new(status(CUT)) == [CUT]
