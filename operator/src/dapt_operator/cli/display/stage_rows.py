"""Turns the status and live progress of one moment into the rows that both views show. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from dapt_contract.base import Contract
from dapt_contract.measure import Measure
from dapt_contract.pod.progress import Progress
from dapt_contract.stages import KINDS
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.blend import BlendFacts
from dapt_contract.stages.destination import DestinationFacts
from dapt_contract.stages.evaluate import EvaluateFacts
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.stages.publish import PublishFacts
from dapt_contract.stages.tuning_data import TuningDataFacts
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.api.v1alpha1.conditions import FINISHED, STALLED, find_condition
from dapt_operator.api.v1alpha1.status import Condition, DomainAdaptationStatus, StageStatus
from dapt_operator.api.v1alpha1.stored.run_record import StageKey
from dapt_operator.number_format import count, percent, perplexity, plural, size
from dapt_operator.plan.stage_parts.stage_plan import ON_DEMAND

CHAIN = tuple(KINDS)
"""Kinds of stages in the order in which they run."""
PLANNED = tuple(kind for kind in CHAIN if kind not in ON_DEMAND)
_OF_MANY = "evaluate "
_SHOWN_OF_MANY = 3


@dataclass(frozen=True)
class Snapshot:
    """The status and live progress of one adaptation at one moment."""

    name: str
    status: DomainAdaptationStatus
    kinds: tuple[str, ...] = PLANNED
    """Kinds of stages that this adaptation will have."""
    progress: Mapping[str, Progress] = field(default_factory=dict)
    """Live progress by run key."""
    now: datetime | None = None
    """Time zone aware; for the time that a running stage has taken."""
    elapsed_seconds: float | None = None
    """Since this command was started; None when nothing runs."""

    @property
    def finished(self) -> Condition | None:
        """The condition Finished when it is True."""
        return _when_true(self.status, FINISHED)

    @property
    def stalled(self) -> Condition | None:
        """The condition Stalled when it is True."""
        return _when_true(self.status, STALLED)


@dataclass(frozen=True)
class StageRow:
    """One line of the view."""

    title: str
    state: str
    """Pending (not started), Waiting (its processes start), Running, Succeeded, Failed, Suspended."""
    seconds: float | None = None
    note: str = ""
    progress: Progress | None = None
    forecast: str = ""
    """What the readings of a running pretraining lead to expect; empty for every other stage."""


def stage_rows(snapshot: Snapshot) -> tuple[StageRow, ...]:
    """Return the started stages in order, the newest run of each, then the stages still to come.

    Corrected tuning data and another destination are new work under the title of the old one, which they replace.
    """
    newest: dict[tuple[str, int, str | None], StageStatus] = {}
    for stage in snapshot.status.stages:
        key = (stage.kind, stage.attempt, StageKey(stage.kind, candidate=stage.candidate).shown_candidate)
        before = newest.get(key)
        # The numbers of runs count for one piece of work; of several pieces the later one is the newer.
        is_newer = (
            before is None or before.candidate != stage.candidate or before.try_number <= stage.try_number
        )
        if is_newer:
            newest[key] = stage
    started = {kind for kind, _, _ in newest}
    rows: list[StageRow] = []
    for kind in CHAIN:
        if kind in started:
            rows += [_row(stage, snapshot) for stage in newest.values() if stage.kind == kind]
        elif kind in snapshot.kinds:
            rows.append(StageRow(title=kind, state="Pending"))
    return tuple(rows)


def folded(rows: tuple[StageRow, ...]) -> tuple[StageRow, ...]:
    """Return the rows with many finished evaluations merged into one, so that running stages fit on the screen."""
    done = [row for row in rows if row.title.startswith(_OF_MANY) and row.state == "Succeeded"]
    if len(done) <= _SHOWN_OF_MANY:
        return rows
    seconds = sum(row.seconds or 0.0 for row in done)
    merged = StageRow(title=f"{_OF_MANY}{len(done)} candidates", state="Succeeded", seconds=seconds)
    return tuple(merged if row is done[0] else row for row in rows if row is done[0] or row not in done)


def stage_title(stage: StageStatus) -> str:
    """Return `pretrain`, `evaluate a1-s24` or `pretrain (attempt 2)`, with the number of the run from the second on."""
    key = StageKey(stage.kind, candidate=stage.candidate)
    title = key.shown_stage
    if key.shown_candidate:
        title += f" {key.shown_candidate}"
    elif stage.attempt > 1:
        title += f" (attempt {stage.attempt})"
    return title + (f", run {stage.try_number}" if stage.try_number > 1 else "")


def _row(stage: StageStatus, snapshot: Snapshot) -> StageRow:
    live = stage.state in ("Pending", "Running")
    progress = snapshot.progress.get(stage.run_key or "") if live else None
    waiting = live and stage.start_time is None and progress is None
    return StageRow(
        title=stage_title(stage),
        state="Waiting" if waiting else "Running" if live else stage.state,
        seconds=_seconds(stage, snapshot.now),
        note=stage_note(snapshot.status, stage),
        progress=progress,
        forecast=_forecast(snapshot.status) if stage.kind == "pretrain" and progress is not None else "",
    )


def _forecast(status: DomainAdaptationStatus) -> str:
    """Return the forecast of the progress with its range; empty without one."""
    expected = status.progress.forecast if status.progress is not None else None
    if expected is None:
        return ""
    return (
        f"general perplexity at the end about {percent(expected.forgetting)}"
        f" ({percent(expected.least)} to {percent(expected.most)})"
    )


def _seconds(stage: StageStatus, now: datetime | None) -> float | None:
    if stage.start_time is None:
        return None
    end = datetime.fromisoformat(stage.completion_time) if stage.completion_time else now
    return None if end is None else (end - datetime.fromisoformat(stage.start_time)).total_seconds()


def _when_true(status: DomainAdaptationStatus, type_: str) -> Condition | None:
    condition = find_condition(status.conditions, type_)
    return condition if condition is not None and condition.status == "True" else None


def stage_note(status: DomainAdaptationStatus, stage: StageStatus) -> str:
    """Return a stage's result in one sentence: its message if it has one, empty when nothing is known."""
    if stage.message or status.ledger is None:
        return stage.message or ""
    record = status.ledger.find(stage.name, stage.attempt, stage.candidate)
    if record is None or not record.has_succeeded:
        return ""
    facts = record.parsed_facts()
    if facts is not None:
        return facts_note(facts)
    # The ledger keeps an evaluation's measure in short form, which the candidate's row was made from.
    row = next((candidate for candidate in status.candidates if candidate.id == stage.candidate), None)
    if (
        stage.kind != "evaluate"
        or row is None
        or row.domain_perplexity is None
        or row.general_perplexity is None
    ):
        return ""
    return (
        f"perplexity domain {perplexity(row.domain_perplexity)}, general {perplexity(row.general_perplexity)}"
    )


def facts_note(facts: Contract) -> str:
    """Return the sentence for one kind of facts."""
    match facts:
        case PrepareFacts():
            held_out = sum(source.held_out_tokens for source in facts.sources)
            return (
                f"{count(facts.domain_tokens)} domain and {count(facts.general_tokens)} general tokens to train on,"
                f" {count(held_out)} held out"
            )
        case BaselineFacts():
            return _measured(facts.measure)
        case EvaluateFacts():
            return _measured(facts.measure)
        case VerifyFacts():
            return f"final model: {_measured(facts.final)}"
        case PretrainFacts():
            done = f"{plural(facts.steps, 'step')}, {count(facts.tokens)} tokens"
            speed = f", {count(facts.tokens_per_second)} tokens/s" if facts.tokens_per_second else ""
            return f"{done}, {plural(len(facts.checkpoints), 'checkpoint')}{speed}"
        case FinetuneFacts():
            return (
                f"{plural(facts.steps, 'step')} on {plural(facts.examples, 'example')},"
                f" loss {facts.first_loss_nats:.3f} to {facts.last_loss_nats:.3f}"
            )
        case TuningDataFacts():
            unit = "example" if facts.kind == "instructions" else "pair"
            return f"{plural(facts.records, unit)} to learn from"
        case DestinationFacts():
            return (
                "empty and writable"
                if facts.found == "empty"
                else "holds a model of this run, and is writable"
            )
        case BlendFacts():
            return f"{plural(len(facts.rows), 'average or interpolation', 'averages and interpolations')} measured"
        case AlignFacts():
            return (
                f"{plural(facts.steps, 'step')} on {plural(facts.pairs, 'pair')},"
                f" loss {facts.first_loss_nats:.3f} to {facts.last_loss_nats:.3f},"
                f" {100 * facts.reward_accuracy:.0f} % of pairs in the right order at the end"
            )
        case PublishFacts():
            return f"{plural(facts.files, 'file')}, {size(facts.size_bytes)}"
    return ""


def _measured(measure: Measure) -> str:
    return (
        f"perplexity domain {perplexity(measure.domain.both.perplexity)},"
        f" general {perplexity(measure.general.both.perplexity)}"
    )
