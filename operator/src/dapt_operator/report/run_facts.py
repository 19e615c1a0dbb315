"""Gives the page's tables of stages, sources, settings and the base model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.number_format import NOT_MEASURED, duration, size
from dapt_operator.plan.status.conditions import run_title
from dapt_operator.report.charts import StageSpan
from dapt_operator.report.inputs import ReportInputs
from dapt_operator.report.typography import percent

_SHOWN_WITH_CANDIDATE: Final = frozenset({"evaluate", "tuning_data"})
"""Kinds of stage of which several may run; the others are about the chosen candidate, which the page names."""


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


def restarts(status: DomainAdaptationStatus) -> int:
    """Return the new runs after faults; one after a stop or a suspension is none. Every page and screen shows this."""
    return (status.usage.restarts or 0) if status.usage is not None else 0


def restarts_text(number: int) -> str:
    """Return `no restart after a fault`, `1 restart after a fault` or `2 restarts after faults`."""
    if number == 0:
        return "no restart after a fault"
    return "1 restart after a fault" if number == 1 else f"{number} restarts after faults"


def stage_spans(inputs: ReportInputs) -> list[StageSpan]:
    """Return when each stage that has ended ran, in seconds since the first one began."""
    ended = [stage for stage in inputs.status.stages if stage.start_time and stage.completion_time]
    if not ended:
        return []
    first_start = min(_seconds(stage.start_time) for stage in ended)
    return [
        StageSpan(
            run_title(stage.name, stage.candidate if stage.kind in _SHOWN_WITH_CANDIDATE else None),
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
            name=run_title(stage.name, stage.candidate),
            state="Stopped" if inputs.is_stopped and stage.state in ("Pending", "Running") else stage.state,
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


def left_out_sentences(inputs: ReportInputs) -> list[str]:
    """Return a sentence for each kind of documents that the table does not count and that some source has."""
    prepare = inputs.prepare
    if prepare is None:
        return []
    labels = {source.name: source.label for source in prepare.facts.sources}
    kinds = (
        ("On both sides, so trained on on both and held out of neither", prepare.shared_by_source),
        ("Nearly equal to a held-out document, so not trained on", prepare.near_duplicates_by_source),
        ("Short and within a held-out document, so not trained on", prepare.contained_by_source),
    )
    sentences = []
    for title, counts in kinds:
        found = [f"{count:,} in {labels.get(name, name)}" for name, count in counts if count]
        if found:
            sentences.append(f"{title}: {', '.join(found)}.")
    return sentences


def source_labels(inputs: ReportInputs) -> list[str]:
    """Return `domain[0] (icd.jsonl)` for each source: its name and the end of its URI."""
    if inputs.prepare is None:
        return []
    uris: dict[str, str] = {}
    if inputs.spec is not None:
        corpus = inputs.spec.corpus
        for side, sources in (("domain", corpus.domain), ("general", corpus.general)):
            uris |= {f"{side}[{index}]": source.source for index, source in enumerate(sources)}
    return [
        f"{source.label} ({uris[source.label].rstrip('/').rsplit('/', 1)[-1]})"
        if source.label in uris
        else source.label
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
            rows.append((name.replace("_", " "), _setting(value)))
    return rows


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


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
