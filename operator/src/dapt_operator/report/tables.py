"""The page's tables and sentences, as plain values for the template."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from dapt_contract.measure import Measure, Score
from dapt_operator.api.v1alpha1.conditions import FINISHED, GATES_PASSED, RECONCILING, STALLED, find_condition
from dapt_operator.number_format import NOT_MEASURED, duration, size, typeset
from dapt_operator.report.charts import Point, ScoreRow, Span
from dapt_operator.report.inputs import Material
from dapt_operator.report.typography import count, number, percent, perplexity, points

GATE_TITLES = {
    "generalPerplexity": "general perplexity",
    "generalScoreDrop": "general scores",
    "domainGain": "domain gain",
}
_CLEAR_ERRORS = 2.0
"""A difference of at least this many standard errors is called a change."""


def change(base: Measure, measured: Measure, side: str) -> float:
    """Perplexity over the base model's, minus 1."""
    return float(getattr(measured, side).both.perplexity / getattr(base, side).both.perplexity - 1.0)


def standing(material: Material) -> tuple[str, str]:
    """How the run stands: a word for the colour (`good`, `bad`, `open`), and a sentence."""
    for type_ in (STALLED, FINISHED):
        condition = find_condition(material.status.conditions, type_)
        if condition is not None and condition.status == "True":
            good = type_ == FINISHED and condition.reason == "Published"
            return "good" if good else "bad", condition.message
    now = find_condition(material.status.conditions, RECONCILING)
    doing = f" ({now.message})" if now is not None and now.status == "True" and now.message else ""
    return "open", f"This run has not ended{doing}: the page shows what is there so far."


def tiles(material: Material) -> Iterator[tuple[str, str, str]]:
    """The figures at the top: title, figure, what stands below it."""
    base = material.base
    named = material.named_measures
    if base is not None and len(named) > 1:
        name, best = named[-1]
        for side, title in (("domain", "Domain perplexity"), ("general", "General perplexity")):
            before, after = getattr(base, side).both.perplexity, getattr(best, side).both.perplexity
            yield (
                title,
                percent(change(base, best, side)),
                f"{perplexity(before)} → {perplexity(after)} ({name} model)",
            )
    elif base is not None:
        yield "Domain perplexity", perplexity(base.domain.both.perplexity), "base model"
        yield "General perplexity", perplexity(base.general.both.perplexity), "base model"
    if material.pretrain is not None:
        facts = material.pretrain.facts
        speed = f"{facts.steps:,} steps at {number(facts.tokens_per_second)} tokens a second"
        yield "Trained on", f"{count(facts.tokens)} tokens", speed
    spent = spans(material)
    if spent:
        took = max(span.start_seconds + span.seconds for span in spent)
        tries = sum(stage.try_number - 1 for stage in material.status.stages)
        yield (
            "Time",
            duration(took),
            f"{tries} new {'try' if tries == 1 else 'tries'} after faults" if tries else "no restart",
        )


def perplexity_rows(material: Material) -> list[dict[str, Any]]:
    """Base, chosen and final: both perplexities and bits per byte."""
    base = material.base
    if base is None:
        return []
    rows = []
    for name, measure in material.named_measures:
        row: dict[str, Any] = {"name": _title(material, name)}
        for side in ("domain", "general"):
            both = getattr(measure, side).both
            row[side] = perplexity(both.perplexity)
            row[f"{side}_change"] = NOT_MEASURED if measure is base else percent(change(base, measure, side))
            row[f"{side}_bits"] = f"{both.bits_per_byte:.3f}"
        rows.append(row)
    return rows


def _title(material: Material, name: str) -> str:
    if name == "chosen":
        return f"chosen: {material.chosen_id}"
    last = "final (preference-tuned)" if material.align else "final (fine-tuned)"
    return {"base": "base model", "finetuned": "fine-tuned", "final": last}[name]


def held_out_words(material: Material) -> str:
    """How much text the perplexities stand on."""
    base = material.base
    if base is None:
        return ""
    told = [f"{getattr(base, side).both.tokens:,} tokens of {side} text" for side in ("domain", "general")]
    return f"Measured on {told[0]} and {told[1]} that no model was trained on."


def score_rows(material: Material) -> list[dict[str, Any]]:
    """Every task and probe set with its paired difference from the base model."""
    rows = []
    for label, by_name in _scores(material):
        base = by_name["base"]
        cells = [points(base.score, base.standard_error)]
        verdict = ""
        for name, _ in material.named_measures[1:]:
            score = by_name.get(name)
            if score is None:
                cells.append("not scored")
            elif score.difference is None or score.difference_standard_error is None:
                cells.append(points(score.score, score.standard_error))
            else:
                paired = points(score.difference, score.difference_standard_error, signed=True)
                cells.append(f"{points(score.score)} ({paired})")
                verdict = _moved(score)
        rows.append({"label": label, "items": base.items, "cells": cells, "verdict": verdict})
    return rows


def _moved(score: Score) -> str:
    difference, error = score.difference or 0.0, score.difference_standard_error or 0.0
    if difference == 0.0 or abs(difference) < _CLEAR_ERRORS * error:
        return "no change beyond noise"
    direction = "better" if difference > 0 else "worse"
    return f"{direction} by {abs(difference) / error:.1f} standard errors" if error else direction


def _scores(material: Material) -> Iterator[tuple[str, dict[str, Score]]]:
    if material.base is None:
        return
    for score in material.base.scores:
        by_name = {
            name: found
            for name, measure in material.named_measures
            for found in measure.scores
            if (found.side, found.kind, found.name) == (score.side, score.kind, score.name)
        }
        kind = "probes" if score.kind == "probe" else "task"
        label = score.name if score.name.startswith(("probes", "task")) else f"{kind} {score.name}"
        yield f"{label} ({score.side})", by_name


def score_chart_rows(material: Material) -> list[ScoreRow]:
    """The same for the picture."""
    return [
        ScoreRow(label, [(name, score.score, score.standard_error) for name, score in by_name.items()])
        for label, by_name in _scores(material)
    ]


def checkpoint_points(material: Material) -> list[Point]:
    """Every candidate in the plane; by the status where the spec is not known."""
    if material.candidates:
        return [
            Point(str(one.step), one.measure.domain.both.perplexity, one.measure.general.both.perplexity)
            for one in material.candidates
            if one.step is not None and one.attempt == _shown_attempt(material)
        ]
    return [
        Point(str(one.step), one.domain_perplexity, one.general_perplexity)
        for one in material.status.candidates
        if one.domain_perplexity is not None and one.general_perplexity is not None and one.step is not None
    ]


def chosen_step(material: Material) -> str | None:
    """Label of the chosen candidate's point."""
    for one in material.status.candidates:
        if one.id == material.chosen_id and one.step is not None:
            return str(one.step)
    return None


def _shown_attempt(material: Material) -> int:
    """The attempt whose checkpoints are drawn: the chosen candidate's, else the newest."""
    chosen = next((one.attempt for one in material.candidates if one.id == material.chosen_id), None)
    return chosen or max((one.attempt for one in material.candidates), default=1)


def candidate_rows(material: Material) -> list[dict[str, Any]]:
    """Every candidate with the verdict of each gate."""
    known = {one.id: one for one in material.candidates}
    rows = []
    for one in material.status.candidates:
        candidate = known.get(one.id)
        verdicts = candidate.verdicts if candidate else ()
        gates = []
        for gate in GATE_TITLES:
            judged = [verdict for verdict in verdicts if verdict.gate == gate]
            state = "" if not judged else "pass" if all(v.passed for v in judged) else "fail"
            gates.append({"state": state, "why": " ".join(v.message for v in judged)})
        rows.append(
            {
                "id": one.id,
                "chosen": one.id == material.chosen_id,
                "domain": perplexity(one.domain_perplexity),
                "domain_change": percent(
                    None if one.domain_perplexity_decrease is None else -one.domain_perplexity_decrease
                ),
                "general": perplexity(one.general_perplexity),
                "general_change": percent(one.forgetting),
                "gain": NOT_MEASURED if one.gain is None else typeset(f"{one.gain:.3f}"),
                "gates": gates,
                "message": one.message or "",
            }
        )
    return rows


def decision(material: Material) -> list[str]:
    """Why which candidate was taken, in sentences."""
    told = []
    base, chosen = material.base, material.chosen
    if material.status.selected is not None:
        selected = material.status.selected
        told.append(f"{selected.id} was chosen: {selected.reason}.")
        if base is not None and chosen is not None:
            limit = material.spec.gates.max_general_perplexity_increase if material.spec else None
            allowed = f", where the gate allows {percent(limit)}" if limit is not None else ""
            told.append(
                f"Against the base model its domain perplexity is {percent(change(base, chosen, 'domain'))} and its "
                f"general perplexity {percent(change(base, chosen, 'general'))}{allowed}."
            )
    if base is not None and material.final is not None:
        told.append(
            "Fine-tuning then made the final model: domain perplexity "
            f"{percent(change(base, material.final, 'domain'))}, general perplexity "
            f"{percent(change(base, material.final, 'general'))} against the base model."
        )
    if judged_sentences(material):
        return told  # the page lists them, gate by gate
    condition = find_condition(material.status.conditions, GATES_PASSED)
    if condition is not None and condition.status != "Unknown" and condition.message:
        told.append(f"Gates: {condition.message}.")
    return told


def judged_sentences(material: Material) -> list[tuple[bool, str]]:
    """What each gate said of the chosen candidate."""
    for one in material.candidates:
        if one.id == material.chosen_id:
            return [(verdict.passed, verdict.message) for verdict in one.verdicts]
    return []


def spans(material: Material) -> list[Span]:
    """The stages that have ended, on one clock."""
    ended = [stage for stage in material.status.stages if stage.start_time and stage.completion_time]
    if not ended:
        return []
    zero = min(_seconds(stage.start_time) for stage in ended)
    return [
        Span(
            f"{stage.name} {stage.candidate}" if stage.candidate and stage.kind == "evaluate" else stage.name,
            _seconds(stage.start_time) - zero,
            _seconds(stage.completion_time) - _seconds(stage.start_time),
            failed=stage.state == "Failed",
        )
        for stage in ended
    ]


def _seconds(time: str | None) -> float:
    return datetime.fromisoformat(str(time)).timestamp()


def stage_rows(material: Material) -> list[dict[str, Any]]:
    """Every run of a stage, with its state and what it said."""
    return [
        {
            "name": stage.name + (f" of {stage.candidate}" if stage.candidate else ""),
            "state": stage.state,
            "try": stage.try_number,
            "seconds": duration(_seconds(stage.completion_time) - _seconds(stage.start_time))
            if stage.start_time and stage.completion_time
            else NOT_MEASURED,
            "message": stage.message or "",
        }
        for stage in material.status.stages
    ]


def source_rows(material: Material) -> list[dict[str, Any]]:
    """Counts of every source."""
    if material.prepare is None:
        return []
    used = tokens_by_source(material)
    return [
        {
            "name": label,
            "side": source.side,
            "documents": f"{source.documents:,}",
            "tokens": f"{source.train_tokens:,}",
            "used": f"{used[source.name]:,}" if source.name in used else NOT_MEASURED,
            "held_out": f"{source.held_out_documents:,} ({source.held_out_tokens:,} tokens)",
            "duplicates": f"{source.duplicates:,}",
            "contaminated": f"{source.contaminated:,}",
            "bad": f"{source.empty + source.bad_records:,}",
            "cut": f"{source.cut_documents:,}",
            "fill": percent(source.fill_fraction, signed=False),
        }
        for source, label in zip(material.prepare.facts.sources, source_labels(material), strict=True)
    ]


def source_labels(material: Material) -> list[str]:
    """`domain-0 (icd.jsonl)`: the folder's name and the end of the URI."""
    if material.prepare is None:
        return []
    spec = material.spec
    uris: dict[str, str] = {}
    if spec is not None:
        for side, listed in (("domain", spec.corpus.domain), ("general", spec.corpus.general)):
            uris |= {f"{side}-{index}": source.source for index, source in enumerate(listed)}
    return [
        f"{source.name} ({uris[source.name].rstrip('/').rsplit('/', 1)[-1]})"
        if source.name in uris
        else source.name
        for source in material.prepare.facts.sources
    ]


def tokens_by_source(material: Material) -> dict[str, int]:
    """What training read from each source; empty before it."""
    return dict(material.pretrain.tokens_by_source) if material.pretrain else {}


def settings(material: Material) -> list[tuple[str, str]]:
    """What 'automatic' came to, as names and values."""
    resolved = material.status.resolved
    if resolved is None:
        return []
    rows = []
    for name, value in resolved.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, dict):
            rows += [(f"{name} {inner}", str(item)) for inner, item in value.items() if item is not None]
        else:
            rows.append((name.replace("_", " "), f"{value:,}" if type(value) is int else str(value)))
    return rows


def model_facts(material: Material) -> list[tuple[str, str]]:
    """The base model, as prepare found it."""
    if material.prepare is None:
        return []
    facts = material.prepare.facts.model
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


def warnings(material: Material) -> list[str]:
    """Each sentence once."""
    said = list(material.status.plan.warnings) if material.status.plan else []
    if material.prepare is not None:
        said += material.prepare.facts.warnings
    if material.pretrain is not None:
        said += material.pretrain.skipped_checkpoints
    return list(dict.fromkeys(said))
