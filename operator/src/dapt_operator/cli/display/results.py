"""What came out: base, chosen checkpoint and final model side by side, from the reports on the work volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dapt_contract.measure import Measure, Score
from dapt_contract.stage_file import find_report
from dapt_contract.stages.baseline import BaselineReport
from dapt_contract.stages.evaluate import EvaluateReport
from dapt_contract.stages.verify import Sample, VerifyReport
from dapt_operator.api.v1alpha1.conditions import PUBLISHED
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.run_folder import RunFolder
from dapt_operator.number_format import percent, perplexity, points, with_sign

HEADINGS = {"base": "base", "chosen": "chosen", "finetuned": "fine-tuned", "final": "final"}
_ANSWER_CHARACTERS = 300


@dataclass(frozen=True)
class RunResults:
    """Measures by model name (keys of `HEADINGS`), as far as they are there, and generated answers."""

    measures: tuple[tuple[str, Measure], ...] = ()
    samples: tuple[Sample, ...] = ()
    chosen_id: str | None = None

    def measure(self, name: str) -> Measure | None:
        """The measure of one model."""
        return dict(self.measures).get(name)


def read_outcome(work: Path, status: DomainAdaptationStatus) -> RunResults:
    """Collect what the finished stages measured; empty when nothing was measured yet."""
    measures: dict[str, Measure] = {}
    samples: tuple[Sample, ...] = ()
    for kind in ("baseline", "evaluate", "verify"):
        for report in _reports(work, kind):
            if isinstance(report, BaselineReport):
                measures["base"] = report.facts.measure
            elif isinstance(report, EvaluateReport):
                if status.selected is None or report.facts.candidate == status.selected.id:
                    measures["chosen"] = report.facts.measure
            elif isinstance(report, VerifyReport):
                measures |= {one.name: one.measure for one in report.measures if one.name in HEADINGS}
                measures.setdefault("final", report.facts.final)
                samples = report.samples
    ordered = tuple((name, measures[name]) for name in HEADINGS if name in measures)
    return RunResults(ordered, samples, status.selected.id if status.selected else None)


def _reports(work: Path, kind: str) -> list[object]:
    folders = sorted({path.parent.parent for path in work.glob(f"stages/{kind}*/try-*/report.json")})
    found = [find_report(work, str(folder.relative_to(work)), kind) for folder in folders]
    return [report for report in found if report is not None]


def outcome_table(outcome: RunResults) -> Table | None:
    """Perplexities, bits per byte and scores of each model; None when nothing was measured."""
    base = outcome.measure("base")
    if base is None:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name, _ in outcome.measures:
        heading = f"chosen {outcome.chosen_id}" if name == "chosen" and outcome.chosen_id else HEADINGS[name]
        table.add_column(heading, justify="right")
    for side in ("domain", "general"):
        table.add_row(f"{side} perplexity", *(_perplexity_cell(base, m, side) for _, m in outcome.measures))
        table.add_row(
            f"{side} bits per byte",
            *(f"{getattr(m, side).both.bits_per_byte:.3f}" for _, m in outcome.measures),
        )
    for score in base.scores:
        label = f"{score.side} {score.kind} {score.name} ({score.items})"
        table.add_row(label, *(_score_cell(_same(m, score)) for _, m in outcome.measures))
    return table


def _perplexity_cell(base: Measure, measure: Measure, side: str) -> str:
    value = getattr(measure, side).both.perplexity
    reference = getattr(base, side).both.perplexity
    return perplexity(value) + ("" if measure is base else f" ({percent(value / reference - 1)})")


def _same(measure: Measure, wanted: Score) -> Score | None:
    key = (wanted.side, wanted.kind, wanted.name)
    return next((score for score in measure.scores if (score.side, score.kind, score.name) == key), None)


def _score_cell(score: Score | None) -> str:
    """`41.0 ± 2.2`, and against the base `(+5.5 ± 1.9)` in points, paired."""
    if score is None:
        return "–"
    cell = f"{points(score.score)} ± {points(score.standard_error)}"
    if score.difference is None or score.difference_standard_error is None:
        return cell
    return f"{cell} ({with_sign(100 * score.difference)} ± {points(score.difference_standard_error)})"


def attempts_table(status: DomainAdaptationStatus) -> Table | None:
    """The attempts with what ended each; None while there is only one."""
    if len(status.attempts) < 2:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("attempt", "learning rate", "replay", "started from", "ended by", ""):
        table.add_column(heading, justify="right" if heading in ("learning rate", "replay") else "left")
    for one in status.attempts:
        table.add_row(
            str(one.number),
            "–" if one.learning_rate is None else f"{one.learning_rate:.3g}",
            "–" if one.replay_fraction is None else f"{100 * one.replay_fraction:.1f} %",
            one.start or "base model",
            one.ended_by or "running",
            one.reason or "",
        )
    return table


def candidates_table(status: DomainAdaptationStatus) -> Table | None:
    """The checkpoints with what was measured of each; None before there is any."""
    if not status.candidates:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("candidate", "domain perplexity", "general perplexity", "forgetting", "gain", "gates"):
        table.add_column(heading, justify="left" if heading in ("candidate", "gates") else "right")
    for one in status.candidates:
        verdict = "–" if one.passes is None else "pass" if one.passes else one.message or "breached"
        if status.selected is not None and one.id == status.selected.id:
            verdict += ", selected"
        table.add_row(
            one.id,
            f"{perplexity(one.domain_perplexity)} ({percent(_negative(one.domain_perplexity_decrease))})",
            perplexity(one.general_perplexity),
            percent(one.forgetting),
            "–" if one.gain is None else f"{one.gain:.3f}",
            verdict,
        )
    return table


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def sample_lines(outcome: RunResults) -> list[str]:
    """One generated answer before and after: the first sample whose answers differ, else the first."""
    if not outcome.samples:
        return []
    sample = next(
        (one for one in outcome.samples if len({text for _, text in one.answers}) > 1), outcome.samples[0]
    )
    answers = dict(sample.answers)
    after = answers.get("final") or answers.get("chosen")
    lines = [f"asked:  {_one_line(sample.prompt)}"]
    if "base" in answers:
        lines.append(f"before: {_one_line(answers['base'])}")
    if after is not None:
        lines.append(f"after:  {_one_line(after)}")
    return lines


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _ANSWER_CHARACTERS else flat[: _ANSWER_CHARACTERS - 1] + "…"


def conclude(
    folder: RunFolder, status: DomainAdaptationStatus, console: Console, *, with_report: bool
) -> None:
    """Show what came out, and write the page if it is asked for.

    Raises:
        UserError: the model was not published; the sentence says why and what to do.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    outcome = read_outcome(folder.work, status)
    for table in (candidates_table(status), outcome_table(outcome)):
        if table is not None:
            console.print()
            console.print(table)
    for line in ["", *sample_lines(outcome)] if outcome.samples else []:
        say(line)
    console.print()
    if with_report:
        _build_page(folder, console)
    if folder.report.is_file():
        say(f"report: {folder.report}")
    shown = Snapshot(folder.name, status)
    if shown.finished is None or shown.finished.reason != PUBLISHED:
        raise UserError(_why(folder, shown))
    if status.output is not None and status.output.destination is not None:
        say(f"model:  {status.output.destination.removeprefix('file://')}")


def _build_page(folder: RunFolder, console: Console) -> None:
    """Write the report; a page that cannot be drawn does not undo a run."""
    from dapt_operator.report import ReportError, build_report

    try:
        build_report(folder.path)
    except ReportError as error:
        console.print(f"no report: {error}", markup=False, highlight=False, style="yellow")


def _why(folder: RunFolder, shown: Snapshot) -> str:
    condition = shown.stalled or shown.finished
    logs = f"(logs: {folder.path / 'logs'})"
    if condition is None:
        return f"{folder.name}: it ended without a word {logs}"
    return f"{folder.name}: {condition.message} {logs}"
