"""Gives the page's tables of perplexities, scores and candidates, and the points of their charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dapt_contract.measure import Measure, Score
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.api.v1alpha1.status import CandidateStatus
from dapt_operator.number_format import NOT_MEASURED, typeset
from dapt_operator.plan.gates import GATES, minimal_gain, task_drop
from dapt_operator.plan.gates import perplexity as perplexity_gate
from dapt_operator.plan.gates.verdict import Gate
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.selection.choose import breach_on_a
from dapt_operator.report import style
from dapt_operator.report.charts import ScoreRow
from dapt_operator.report.inputs import ReportInputs
from dapt_operator.report.training_charts import PerplexityPoint
from dapt_operator.report.typography import percent_with_error, perplexity, points, typeset_percents

_CLEAR_STANDARD_ERRORS: Final = 2.0
"""A difference of at least this many standard errors is called a change."""
_SMALLEST_SHOWN: Final = 0.0005
"""A smaller difference of shares is shown as 0.0 points."""


@dataclass(frozen=True)
class SidePerplexityCells:
    """Cells of one side in the table of perplexities."""

    perplexity: str
    change: str
    bits_per_byte: str


@dataclass(frozen=True)
class PerplexityRow:
    """One model in the table of perplexities."""

    name: str
    domain: SidePerplexityCells
    general: SidePerplexityCells


@dataclass(frozen=True)
class ScoreTableRow:
    """One task or probe set with each model's score."""

    label: str
    num_items: int
    cells: list[str]
    verdict: str


@dataclass(frozen=True)
class GateCell:
    """What one gate says about one candidate."""

    state: Literal["", "pass", "fail"]
    """Empty when the gate was not checked."""
    reason: str


@dataclass(frozen=True)
class CandidateRow:
    """One candidate with its measurements and the verdict of each gate."""

    id: str
    is_chosen: bool
    domain: str
    domain_change: str
    general: str
    general_change: str
    gain: str
    gain_with_tasks: str
    gates: list[GateCell]
    message: str


def perplexity_change(base: Measure, measure: Measure, side: Literal["domain", "general"]) -> float:
    """Return the perplexity of a side divided by the base model's, minus 1."""
    before, after = (model.domain if side == "domain" else model.general for model in (base, measure))
    return float(after.both.perplexity / before.both.perplexity - 1.0)


def perplexity_rows(inputs: ReportInputs) -> list[PerplexityRow]:
    """Return both perplexities and bits per byte of base, chosen and final model."""
    base = inputs.base
    if base is None:
        return []
    return [
        PerplexityRow(
            _model_title(inputs, name),
            _side_cells(base, measure, "domain"),
            _side_cells(base, measure, "general"),
        )
        for name, measure in inputs.named_measures
    ]


def _side_cells(base: Measure, measure: Measure, side: Literal["domain", "general"]) -> SidePerplexityCells:
    both = (measure.domain if side == "domain" else measure.general).both
    share, error = perplexity_change(base, measure, side), both.difference_standard_error_nats
    # Of a ratio, to first order: the ratio times the error of its logarithm.
    of_ratio = None if error is None else (1.0 + share) * error
    change = NOT_MEASURED if measure is base else percent_with_error(share, of_ratio)
    return SidePerplexityCells(perplexity(both.perplexity), change, f"{both.bits_per_byte:.3f}")


def _model_title(inputs: ReportInputs, name: str) -> str:
    if name == "chosen":
        return f"chosen: {inputs.chosen_id}"
    last = f"final ({'preference-tuned' if inputs.align else 'fine-tuned'})"
    return {"base": "base model", "finetuned": "fine-tuned", "final": last}[name]


def held_out_sentence(inputs: ReportInputs) -> str:
    """Return on how much text the perplexities were measured; empty before."""
    base = inputs.base
    if base is None:
        return ""
    domain, general = base.domain.both.tokens, base.general.both.tokens
    return (
        f"Measured on {domain:,} tokens of domain text and {general:,} tokens of general text that no model was"
        " trained on."
    )


def asks_for_scores(inputs: ReportInputs) -> bool:
    """Whether anything besides the perplexities is to be measured; True where the spec is not known."""
    return inputs.spec is None or has_scores(inputs.spec)


def score_rows(inputs: ReportInputs) -> list[ScoreTableRow]:
    """Return every task and probe set with its paired difference from the base model."""
    rows = []
    for label, scores in _scores_by_model(inputs):
        base = scores["base"]
        cells = [points(base.score, base.standard_error)]
        verdict = ""
        for name, _ in inputs.named_measures[1:]:
            score = scores.get(name)
            if score is None:
                cells.append("not scored")
            elif score.difference is None or score.difference_standard_error is None:
                cells.append(points(score.score, score.standard_error))
            else:
                paired = points(score.difference, score.difference_standard_error, signed=True)
                cells.append(f"{points(score.score)} ({paired})")
                verdict = _score_verdict(score.difference, score.difference_standard_error)
        rows.append(ScoreTableRow(label, base.items, cells, verdict))
    return rows


def _score_verdict(difference: float, standard_error: float) -> str:
    if difference == 0.0 or abs(difference) < _CLEAR_STANDARD_ERRORS * standard_error:
        return "no change beyond noise"
    if abs(difference) < _SMALLEST_SHOWN:
        return "less than 0.1 points"
    direction = "better" if difference > 0 else "worse"
    if not standard_error:
        return direction
    return f"{direction} by {abs(difference) / standard_error:.1f} standard errors"


def _scores_by_model(inputs: ReportInputs) -> Iterator[tuple[str, Mapping[str, Score]]]:
    """Yield the label of each task and probe set of the base model, with the score of each model that has one."""
    for score in inputs.base.scores if inputs.base is not None else ():
        key = (score.side, score.kind, score.name)
        scores = {
            model: other
            for model, measure in inputs.named_measures
            for other in measure.scores
            if (other.side, other.kind, other.name) == key
        }
        kind = "probes" if score.kind == "probe" else "task"
        label = score.name if score.name.startswith(("probes", "task")) else f"{kind} {score.name}"
        yield f"{label} ({score.side})", scores


def score_chart_rows(inputs: ReportInputs) -> list[ScoreRow]:
    """Return every task and probe set with the score of each model, for the chart."""
    return [
        ScoreRow(label, [(model, score.score, score.standard_error) for model, score in scores.items()])
        for label, scores in _scores_by_model(inputs)
    ]


def checkpoint_points(inputs: ReportInputs) -> list[PerplexityPoint]:
    """Return the checkpoints of the shown attempt in the plane of the perplexities.

    Where the spec is not known, those of all attempts come from the status.
    """
    if inputs.candidates:
        attempt = _shown_attempt(inputs)
        return [
            PerplexityPoint(
                str(candidate.step),
                candidate.measure.domain.both.perplexity,
                candidate.measure.general.both.perplexity,
            )
            for candidate in inputs.candidates
            if candidate.step is not None and candidate.attempt == attempt
        ]
    return [
        PerplexityPoint(str(candidate.step), candidate.domain_perplexity, candidate.general_perplexity)
        for candidate in inputs.status.candidates
        if candidate.domain_perplexity is not None
        and candidate.general_perplexity is not None
        and candidate.step is not None
    ]


def chosen_step(inputs: ReportInputs) -> str | None:
    """Return the label of the chosen candidate's point; None where none is chosen, or it is no checkpoint."""
    for candidate in inputs.status.candidates:
        if candidate.id == inputs.chosen_id and candidate.step is not None:
            return str(candidate.step)
    return None


def _shown_attempt(inputs: ReportInputs) -> int:
    """Return the attempt whose checkpoints are drawn: the chosen candidate's, else the newest."""
    chosen = next((row.attempt for row in inputs.candidates if row.id == inputs.chosen_id), None)
    return chosen or max((row.attempt for row in inputs.candidates), default=1)


def candidate_rows(inputs: ReportInputs) -> list[CandidateRow]:
    """Return every candidate with the verdict of each gate."""
    candidates = {candidate.id: candidate for candidate in inputs.candidates}
    return [_candidate_row(inputs, row, candidates.get(row.id)) for row in inputs.status.candidates]


def gate_columns(inputs: ReportInputs) -> tuple[Gate, ...]:
    """Return the gates that have something to judge: that of general scores only where there are such scores."""
    if inputs.spec is None or asks_for_general_scores(inputs.spec):
        return GATES
    return tuple(gate for gate in GATES if gate.name != task_drop.NAME)


def asks_for_general_scores(spec: DomainAdaptationSpec) -> bool:
    """Whether a general task or probe set is to be measured."""
    return bool(spec.evaluation.general.tasks or spec.evaluation.probes.general)


def has_messages(rows: Sequence[CandidateRow]) -> bool:
    """Whether any candidate has a message, which says more than its gates."""
    return any(row.message for row in rows)


def model_name(name: str) -> str:
    """Return the name of a model as tables show it: `fine-tuned`."""
    return style.MODEL_NAMES.get(name, name)


def has_task_gains(inputs: ReportInputs) -> bool:
    """Whether the domain tasks of any candidate were measured."""
    return any(row.gain_with_tasks is not None for row in inputs.status.candidates)


def _gain_cell(gain: float | None) -> str:
    return NOT_MEASURED if gain is None else typeset(f"{gain:.3f}")


def _candidate_row(inputs: ReportInputs, row: CandidateStatus, candidate: Candidate | None) -> CandidateRow:
    decrease = row.domain_perplexity_decrease
    return CandidateRow(
        id=row.id,
        is_chosen=row.id == inputs.chosen_id,
        domain=perplexity(row.domain_perplexity),
        domain_change=percent_with_error(
            None if decrease is None else -decrease, row.domain_perplexity_decrease_standard_error
        ),
        general=perplexity(row.general_perplexity),
        general_change=percent_with_error(row.forgetting, row.forgetting_standard_error),
        gain=_gain_cell(row.gain),
        gain_with_tasks=_gain_cell(row.gain_with_tasks),
        gates=[_gate_cell(inputs, candidate, gate.name) for gate in gate_columns(inputs)],
        message=typeset_percents(row.message or ""),
    )


def _gate_cell(inputs: ReportInputs, candidate: Candidate | None, gate: str) -> GateCell:
    """Return what a gate says; nothing where it has not judged, or not on all that it judges by."""
    verdicts = [verdict for verdict in candidate.verdicts if verdict.gate == gate] if candidate else []
    if candidate is None or inputs.spec is None or not verdicts:
        return GateCell("", "")
    reasons = [verdict.message for verdict in verdicts]
    passes = all(verdict.passed for verdict in verdicts)
    if gate == perplexity_gate.NAME and not candidate.passes_a and inputs.base is not None:
        reasons.insert(0, breach_on_a(inputs.spec, inputs.base, candidate))
        passes = False
    # The gain of a candidate whose tasks were not measured is that of perplexity alone: it may fall below zero yet.
    is_partial = gate == minimal_gain.NAME and not candidate.is_evaluated and has_scores(inputs.spec)
    if passes and is_partial:
        return GateCell("", "its tasks were not measured")
    return GateCell("pass" if passes else "fail", typeset_percents(" ".join(reasons)))
