"""Shows base, chosen checkpoint and final model side by side, from the reports on the work volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from dapt_contract.measure import Measure, Score
from dapt_contract.sentences import shortened
from dapt_contract.stages.baseline import BaselineReport
from dapt_contract.stages.evaluate import EvaluateReport
from dapt_contract.stages.verify import Sample, VerifyReport
from dapt_operator.api.v1alpha1.conditions import PUBLISHED
from dapt_operator.api.v1alpha1.status import CandidateStatus, DomainAdaptationStatus
from dapt_operator.cli.display.screen import CleanConsole
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.run_folder import RunFolder
from dapt_operator.number_format import NOT_MEASURED, percent, percent_with_error, perplexity, points
from dapt_operator.report.inputs import NO_ANSWER, find_stage_report, read_reports

HEADINGS = {"base": "base", "chosen": "chosen", "finetuned": "fine-tuned", "final": "final"}
_ANSWER_CHARACTERS = 300


@dataclass(frozen=True)
class RunResults:
    """The measures by model name (keys of `HEADINGS`), as far as they exist, and generated answers."""

    measures: tuple[tuple[str, Measure], ...] = ()
    samples: tuple[Sample, ...] = ()
    chosen_id: str | None = None

    def measure(self, name: str) -> Measure | None:
        """Return the measure of one model; None when it was not measured."""
        return dict(self.measures).get(name)


def read_results(work: Path, status: DomainAdaptationStatus) -> RunResults:
    """Return what the finished stages measured; empty when nothing was measured yet.

    Reports about another candidate than the selected one, which a changed selection leaves behind, do not count.
    """
    selected = status.selected.id if status.selected else None
    reports = read_reports(work)
    measures: dict[str, Measure] = {}
    samples: tuple[Sample, ...] = ()
    if baseline := find_stage_report(BaselineReport, reports, "baseline"):
        measures["base"] = baseline.facts.measure
    if selected is not None:
        if evaluation := find_stage_report(EvaluateReport, reports, "evaluate", selected):
            measures["chosen"] = evaluation.facts.measure
        if verification := find_stage_report(VerifyReport, reports, "verify", selected):
            compared = {named.name: named.measure for named in verification.measures}
            measures |= {name: measure for name, measure in compared.items() if name in HEADINGS}
            measures["final"] = verification.facts.final
            samples = verification.samples
    ordered = tuple((name, measures[name]) for name in HEADINGS if name in measures)
    return RunResults(ordered, samples, selected)


def results_table(results: RunResults) -> Table | None:
    """Return perplexities, bits per byte and scores of each model; None when nothing was measured."""
    base = results.measure("base")
    if base is None:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name, _ in results.measures:
        heading = f"chosen {results.chosen_id}" if name == "chosen" and results.chosen_id else HEADINGS[name]
        table.add_column(heading, justify="right")
    for side in ("domain", "general"):
        table.add_row(f"{side} perplexity", *(_perplexity_cell(base, m, side) for _, m in results.measures))
        table.add_row(
            f"{side} bits per byte",
            *(f"{getattr(m, side).both.bits_per_byte:.3f}" for _, m in results.measures),
        )
    for score in base.scores:
        label = f"{score.side} {score.kind} {score.name} ({score.items})"
        table.add_row(label, *(_score_cell(_same(m, score)) for _, m in results.measures))
    return table


def _perplexity_cell(base: Measure, measure: Measure, side: str) -> str:
    value = getattr(measure, side).both.perplexity
    reference = getattr(base, side).both.perplexity
    return perplexity(value) + ("" if measure is base else f" ({percent(value / reference - 1)})")


def _same(measure: Measure, base_score: Score) -> Score | None:
    key = (base_score.side, base_score.kind, base_score.name)
    return next((score for score in measure.scores if (score.side, score.kind, score.name) == key), None)


def _score_cell(score: Score | None) -> str:
    """Return `41.0 ± 2.2`, and the paired difference to the base model in points, `(+5.5 ± 1.9)`."""
    if score is None:
        return "–"
    cell = points(score.score, score.standard_error)
    if score.difference is None or score.difference_standard_error is None:
        return cell
    return f"{cell} ({points(score.difference, score.difference_standard_error, signed=True)})"


def attempts_table(status: DomainAdaptationStatus) -> Table | None:
    """Return the attempts with the reason that ended each; None while there is only one."""
    if len(status.attempts) < 2:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("attempt", "learning rate", "replay", "started from", "ended by", ""):
        table.add_column(heading, justify="right" if heading in ("learning rate", "replay") else "left")
    for attempt in status.attempts:
        table.add_row(
            str(attempt.number),
            "–" if attempt.learning_rate is None else f"{attempt.learning_rate:.3g}",
            percent(attempt.replay_fraction, signed=False),
            attempt.start or "base model",
            attempt.ended_by or "running",
            attempt.reason or "",
        )
    return table


def candidates_table(status: DomainAdaptationStatus) -> Table | None:
    """Return the candidates with what was measured of each; None before there is any."""
    if not status.candidates:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    # Two columns, since the tasks are measured of some candidates alone: each has one definition.
    has_tasks = any(candidate.gain_with_tasks is not None for candidate in status.candidates)
    gains = ("gain", "with tasks") if has_tasks else ("gain",)
    for heading in ("candidate", "domain perplexity", "general perplexity", "forgetting", *gains, "gates"):
        table.add_column(heading, justify="left" if heading in ("candidate", "gates") else "right")
    for candidate in status.candidates:
        passes = candidate.passes
        verdict = "–" if passes is None else "pass" if passes else candidate.message or "breached"
        if status.selected is not None and candidate.id == status.selected.id:
            verdict += ", selected"
        table.add_row(
            candidate.id,
            f"{perplexity(candidate.domain_perplexity)} ({_domain_change(candidate)})",
            perplexity(candidate.general_perplexity),
            percent_with_error(candidate.forgetting, candidate.forgetting_standard_error),
            *(_gain_cell(gain) for gain in (candidate.gain, candidate.gain_with_tasks)[: len(gains)]),
            verdict,
        )
    return table


def _gain_cell(gain: float | None) -> str:
    return NOT_MEASURED if gain is None else f"{gain:.3f}"


def _domain_change(candidate: CandidateStatus) -> str:
    change = _negative(candidate.domain_perplexity_decrease)
    return percent_with_error(change, candidate.domain_perplexity_decrease_standard_error)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def sample_lines(results: RunResults) -> list[str]:
    """Return answers of the base model and of the final one.

    Where right answers are known, all samples that have one, with what is right next to them; else one: the first where
    the two differ, or the first. No other model's answer stands in for one that is missing, and an answer without text
    is shown as such.
    """
    known = [sample for sample in results.samples if sample.expected is not None]
    if known:
        return [line for sample in known for line in _judged(sample)] + [_score(known)]
    if not results.samples:
        return []
    sample = next((sample for sample in results.samples if _differs(sample)), results.samples[0])
    answers = dict(sample.answers)
    lines = [f"asked:  {_one_line(sample.prompt)}"]
    for label, model in (("before:", "base"), ("after: ", "final")):
        if model in answers:
            lines.append(f"{label} {_one_line(answers[model]) or NO_ANSWER}")
    return lines


def _judged(sample: Sample) -> list[str]:
    """Return one question with its right answer and those of both models, and an empty line behind it."""
    answers = dict(sample.answers)
    lines = [f"asked:  {_one_line(sample.prompt)}", f"right:  {_one_line(sample.expected or '')}"]
    for label, model in (("before:", "base"), ("after: ", "final")):
        if model in answers:
            mark = "right" if sample.is_right(model) else "wrong"
            lines.append(f"{label} {_one_line(answers[model]) or NO_ANSWER} ({mark})")
    return [*lines, ""]


def _score(samples: list[Sample]) -> str:
    before, after = (sum(sample.is_right(model) is True for sample in samples) for model in ("base", "final"))
    return (
        f"{before} of {len(samples)} answers have the right one in them before, {after} after; so few prove nothing:"
        " the table has the measurements"
    )


def _differs(sample: Sample) -> bool:
    answers = dict(sample.answers)
    return answers.get("base") != answers.get("final")


def _one_line(text: str) -> str:
    return shortened(" ".join(text.split()), _ANSWER_CHARACTERS)


def conclude(
    folder: RunFolder, status: DomainAdaptationStatus, console: CleanConsole, *, with_report: bool
) -> None:
    """Show the results, and write the page if requested.

    Raises:
        UserError: the model was not published; the sentence says why and what to do.
    """

    def show(line: str) -> None:
        console.print(line, soft_wrap=True)

    results = read_results(folder.work, status)
    for table in (candidates_table(status), results_table(results)):
        if table is not None:
            console.print()
            console.print(table)
    for line in ["", *sample_lines(results)] if results.samples else []:
        show(line)
    console.print()
    if with_report:
        _build_page(folder, console)
    if folder.report.is_file():
        show(f"report: {folder.report}")
    snapshot = Snapshot(folder.name, status)
    if snapshot.finished is None or snapshot.finished.reason != PUBLISHED:
        raise UserError(_why(folder, snapshot))
    if status.output is not None and status.output.destination is not None:
        show(f"model:  {status.output.destination.removeprefix('file://')}")


def _build_page(folder: RunFolder, console: CleanConsole) -> None:
    """Write the report; a page that cannot be drawn does not fail the run."""
    from dapt_operator.report import ReportError, build_report

    try:
        build_report(folder.path)
    except ReportError as error:
        console.print(f"no report: {error}", style="yellow")


def _why(folder: RunFolder, snapshot: Snapshot) -> str:
    condition = snapshot.stalled or snapshot.finished
    logs = f"(logs: {folder.path / 'logs'})"
    if condition is None:
        return f"{folder.name}: the run ended without a condition that says why {logs}"
    return f"{folder.name}: {condition.message} {logs}"
