"""Gives the page's tables, figures and sentences as plain values for the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple

from dapt_contract.measure import Measure, Score
from dapt_operator.api.v1alpha1.conditions import FINISHED, GATES_PASSED, RECONCILING, STALLED, find_condition
from dapt_operator.api.v1alpha1.status import CandidateStatus
from dapt_operator.number_format import NOT_MEASURED, duration, plural, size, typeset
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.report.charts import PerplexityPoint, ScoreRow, StageSpan
from dapt_operator.report.inputs import ReportInputs
from dapt_operator.report.typography import count, number, percent, perplexity, points

Tone = Literal["good", "bad", "open"]

GATES: Final = ("generalPerplexity", "generalScoreDrop", "domainGain")
"""The gates in the order of the columns."""
_CLEAR_STANDARD_ERRORS: Final = 2.0
"""A difference of at least this many standard errors is called a change."""


class Tile(NamedTuple):
    """One figure at the top of the page."""

    title: str
    figure: str
    note: str


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
    gates: list[GateCell]
    message: str


@dataclass(frozen=True)
class StageRow:
    """One run of a stage."""

    name: str
    state: str
    try_number: int
    duration: str
    message: str


@dataclass(frozen=True)
class SourceRow:
    """Counts of one source."""

    name: str
    documents: str
    tokens: str
    used: str
    held_out: str
    duplicates: str
    contaminated: str
    bad: str
    cut: str
    fill: str


def perplexity_change(base: Measure, measure: Measure, side: Literal["domain", "general"]) -> float:
    """Return the perplexity of a side divided by the base model's, minus 1."""
    before, after = (model.domain if side == "domain" else model.general for model in (base, measure))
    return float(after.both.perplexity / before.both.perplexity - 1.0)


def run_state(inputs: ReportInputs) -> tuple[Tone, str]:
    """Return how the run stands: a tone for the colour, and a sentence."""
    for condition_type in (STALLED, FINISHED):
        condition = find_condition(inputs.status.conditions, condition_type)
        if condition is not None and condition.status == "True":
            is_published = condition_type == FINISHED and condition.reason == "Published"
            return "good" if is_published else "bad", condition.message
    reconciling = find_condition(inputs.status.conditions, RECONCILING)
    is_active = reconciling is not None and reconciling.status == "True" and reconciling.message
    activity = f" ({reconciling.message})" if reconciling is not None and is_active else ""
    return "open", f"This run has not ended{activity}: the page shows what is there so far."


def tiles(inputs: ReportInputs) -> Iterator[Tile]:
    """Yield the figures at the top of the page."""
    base, named_measures = inputs.base, inputs.named_measures
    if base is not None:
        domain, general = base.domain.both.perplexity, base.general.both.perplexity
        if len(named_measures) > 1:
            name, best = named_measures[-1]
            note = f"{perplexity(domain)} → {perplexity(best.domain.both.perplexity)} ({name} model)"
            yield Tile("Domain perplexity", percent(perplexity_change(base, best, "domain")), note)
            note = f"{perplexity(general)} → {perplexity(best.general.both.perplexity)} ({name} model)"
            yield Tile("General perplexity", percent(perplexity_change(base, best, "general")), note)
        else:
            yield Tile("Domain perplexity", perplexity(domain), "base model")
            yield Tile("General perplexity", perplexity(general), "base model")
    if inputs.pretrain is not None:
        facts = inputs.pretrain.facts
        speed = f"{facts.steps:,} steps at {number(facts.tokens_per_second)} tokens per second"
        yield Tile("Trained on", f"{count(facts.tokens)} tokens", speed)
    spans = stage_spans(inputs)
    if spans:
        total = duration(max(span.end_seconds for span in spans))
        restarts = sum(stage.try_number - 1 for stage in inputs.status.stages)
        yield Tile("Time", total, plural(restarts, "restart") if restarts else "no restart")


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
    change = NOT_MEASURED if measure is base else percent(perplexity_change(base, measure, side))
    return SidePerplexityCells(perplexity(both.perplexity), change, f"{both.bits_per_byte:.3f}")


def _model_title(inputs: ReportInputs, name: str) -> str:
    if name == "chosen":
        return f"chosen: {inputs.chosen_id}"
    last = "final (preference-tuned)" if inputs.align else "final (fine-tuned)"
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
    return [
        _candidate_row(row, candidates.get(row.id), is_chosen=row.id == inputs.chosen_id)
        for row in inputs.status.candidates
    ]


def _candidate_row(row: CandidateStatus, candidate: Candidate | None, *, is_chosen: bool) -> CandidateRow:
    decrease = row.domain_perplexity_decrease
    return CandidateRow(
        id=row.id,
        is_chosen=is_chosen,
        domain=perplexity(row.domain_perplexity),
        domain_change=percent(None if decrease is None else -decrease),
        general=perplexity(row.general_perplexity),
        general_change=percent(row.forgetting),
        gain=NOT_MEASURED if row.gain is None else typeset(f"{row.gain:.3f}"),
        gates=[_gate_cell(candidate, gate) for gate in GATES],
        message=row.message or "",
    )


def _gate_cell(candidate: Candidate | None, gate: str) -> GateCell:
    verdicts = [verdict for verdict in candidate.verdicts if verdict.gate == gate] if candidate else []
    if not verdicts:
        return GateCell("", "")
    reason = " ".join(verdict.message for verdict in verdicts)
    return GateCell("pass" if all(verdict.passed for verdict in verdicts) else "fail", reason)


def decision_sentences(inputs: ReportInputs) -> list[str]:
    """Return which candidate was chosen and why, in sentences; empty while there is nothing to say."""
    sentences = []
    base, chosen, selected = inputs.base, inputs.chosen, inputs.status.selected
    if selected is not None:
        sentences.append(f"{selected.id} was chosen: {selected.reason}.")
        if base is not None and chosen is not None:
            limit = inputs.spec.gates.max_general_perplexity_increase if inputs.spec else None
            allowed = f", where the gate allows {percent(limit)}" if limit is not None else ""
            sentences.append(
                f"Against the base model its domain perplexity is {percent(perplexity_change(base, chosen, 'domain'))}"
                f" and its general perplexity {percent(perplexity_change(base, chosen, 'general'))}{allowed}."
            )
    if base is not None and inputs.final is not None:
        sentences.append(
            "Fine-tuning then made the final model: domain perplexity "
            f"{percent(perplexity_change(base, inputs.final, 'domain'))}, general perplexity "
            f"{percent(perplexity_change(base, inputs.final, 'general'))} against the base model."
        )
    if gate_sentences(inputs):
        return sentences  # the page lists them, gate by gate
    condition = find_condition(inputs.status.conditions, GATES_PASSED)
    if condition is not None and condition.status != "Unknown" and condition.message:
        sentences.append(f"Gates: {condition.message}.")
    return sentences


def gate_sentences(inputs: ReportInputs) -> list[tuple[bool, str]]:
    """Return for each gate whether the chosen candidate passes, and the sentence."""
    for candidate in inputs.candidates:
        if candidate.id == inputs.chosen_id:
            return [(verdict.passed, verdict.message) for verdict in candidate.verdicts]
    return []


def stage_spans(inputs: ReportInputs) -> list[StageSpan]:
    """Return when each stage that has ended ran, in seconds since the first one began."""
    ended = [stage for stage in inputs.status.stages if stage.start_time and stage.completion_time]
    if not ended:
        return []
    first_start = min(_seconds(stage.start_time) for stage in ended)
    return [
        StageSpan(
            f"{stage.name} {stage.candidate}" if stage.candidate and stage.kind == "evaluate" else stage.name,
            _seconds(stage.start_time) - first_start,
            _seconds(stage.completion_time) - _seconds(stage.start_time),
            has_failed=stage.state == "Failed",
        )
        for stage in ended
    ]


def _seconds(time: str | None) -> float:
    return datetime.fromisoformat(str(time)).timestamp()


def stage_rows(inputs: ReportInputs) -> list[StageRow]:
    """Return every run of a stage, with its state and its message."""
    return [
        StageRow(
            name=stage.name + (f" of {stage.candidate}" if stage.candidate else ""),
            state=stage.state,
            try_number=stage.try_number,
            duration=duration(_seconds(stage.completion_time) - _seconds(stage.start_time))
            if stage.start_time and stage.completion_time
            else NOT_MEASURED,
            message=stage.message or "",
        )
        for stage in inputs.status.stages
    ]


def source_rows(inputs: ReportInputs) -> list[SourceRow]:
    """Return the counts of every source; empty before they are prepared."""
    if inputs.prepare is None:
        return []
    used = tokens_by_source(inputs)
    return [
        SourceRow(
            name=label,
            documents=f"{source.documents:,}",
            tokens=f"{source.train_tokens:,}",
            used=f"{used[source.name]:,}" if source.name in used else NOT_MEASURED,
            held_out=f"{source.held_out_documents:,} ({source.held_out_tokens:,} tokens)",
            duplicates=f"{source.duplicates:,}",
            contaminated=f"{source.contaminated:,}",
            bad=f"{source.empty + source.bad_records:,}",
            cut=f"{source.cut_documents:,}",
            fill=percent(source.fill_fraction, signed=False),
        )
        for source, label in zip(inputs.prepare.facts.sources, source_labels(inputs), strict=True)
    ]


def source_labels(inputs: ReportInputs) -> list[str]:
    """Return `domain-0 (icd.jsonl)` for each source: its name and the end of its URI."""
    if inputs.prepare is None:
        return []
    uris: dict[str, str] = {}
    if inputs.spec is not None:
        corpus = inputs.spec.corpus
        for side, sources in (("domain", corpus.domain), ("general", corpus.general)):
            uris |= {f"{side}-{index}": source.source for index, source in enumerate(sources)}
    return [
        f"{source.name} ({uris[source.name].rstrip('/').rsplit('/', 1)[-1]})"
        if source.name in uris
        else source.name
        for source in inputs.prepare.facts.sources
    ]


def tokens_by_source(inputs: ReportInputs) -> dict[str, int]:
    """Return the tokens that training read from each source; empty before it."""
    return dict(inputs.pretrain.tokens_by_source) if inputs.pretrain else {}


def resolved_settings(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return the values that were chosen for absent fields, by name."""
    resolved = inputs.status.resolved
    if resolved is None:
        return []
    rows = []
    for name, value in resolved.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, dict):
            rows += [(f"{name} {inner}", str(item)) for inner, item in value.items() if item is not None]
        else:
            rows.append((name.replace("_", " "), f"{value:,}" if type(value) is int else str(value)))
    return rows


def model_facts(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return the properties of the base model; empty before it is read."""
    if inputs.prepare is None:
        return []
    facts = inputs.prepare.facts.model
    return [
        ("architecture", facts.architecture),
        ("parameters", f"{facts.parameters:,}"),
        ("layers × hidden size", f"{facts.layers} × {facts.hidden_size:,}"),
        ("attention heads (key-value)", f"{facts.attention_heads} ({facts.key_value_heads})"),
        ("vocabulary", f"{facts.vocabulary_size:,} tokens"),
        ("longest context", f"{facts.max_positions:,} tokens"),
        ("chat template", "yes" if facts.has_chat_template else "no"),
        ("weights", size(facts.weights_bytes)),
        ("revision", facts.revision),
    ]


def warnings(inputs: ReportInputs) -> list[str]:
    """Return the warnings of the plan, of prepare and of pretraining, each once."""
    sentences = list(inputs.status.plan.warnings) if inputs.status.plan else []
    if inputs.prepare is not None:
        sentences += inputs.prepare.facts.warnings
    if inputs.pretrain is not None:
        sentences += inputs.pretrain.skipped_checkpoints
    return list(dict.fromkeys(sentences))
