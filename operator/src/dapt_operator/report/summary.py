"""Gives the sentences and figures that sum up a run, as plain values for the template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from dapt_contract.pod.message import MORE_WARNINGS
from dapt_contract.sentences import CUT_MARK
from dapt_operator.api.v1alpha1.conditions import FINISHED, GATES_PASSED, RECONCILING, STALLED, find_condition
from dapt_operator.number_format import duration, plural
from dapt_operator.plan.gates import FINISHED_MODEL, GATES, GateFacts, Verdict
from dapt_operator.plan.selection.choose import breach_on_a
from dapt_operator.report.inputs import ReportInputs
from dapt_operator.report.measurements import perplexity_change
from dapt_operator.report.run_facts import restarts, restarts_text, stage_spans
from dapt_operator.report.typography import count, number, percent, perplexity, typeset_percents

Tone = Literal["good", "bad", "open"]
_COUNT_OF_MORE: Final = re.compile(re.escape(MORE_WARNINGS).replace(re.escape("{number}"), "[0-9]+"))


class Tile(NamedTuple):
    """One figure at the top of the page."""

    title: str
    figure: str
    note: str


def run_state(inputs: ReportInputs) -> tuple[Tone, str]:
    """Return how the run stands: a tone for the colour, and a sentence."""
    for condition_type in (STALLED, FINISHED):
        condition = find_condition(inputs.status.conditions, condition_type)
        if condition is not None and condition.status == "True":
            is_published = condition_type == FINISHED and condition.reason == "Published"
            return "good" if is_published else "bad", typeset_percents(condition.message)
    if inputs.is_stopped:
        return (
            "open",
            "This run has not ended and does not run now; `dapt run` with its manifest continues it.",
        )
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
    progress = inputs.status.progress
    if inputs.pretrain is not None and inputs.pretrain.facts.steps:
        facts = inputs.pretrain.facts
        speed = f"{facts.steps:,} steps at {number(facts.tokens_per_second)} tokens per second"
        yield Tile("Trained on", f"{count(facts.tokens)} tokens", speed)
    elif progress is not None and progress.step:
        of_all = f" of {progress.total_steps:,}" if progress.total_steps else ""
        yield Tile("Trained on", f"{count(progress.tokens)} tokens", f"step {progress.step:,}{of_all} so far")
    spans = stage_spans(inputs)
    if spans:
        # A local run knows its own time; elsewhere it is that between the first start and the last end.
        total_seconds = inputs.run_seconds or max(span.end_seconds for span in spans)
        yield Tile("Time", duration(total_seconds), restarts_text(restarts(inputs.status)))


def tuned_by(inputs: ReportInputs) -> str:
    """Return what made the final model of the chosen one last: `fine-tuned` or `preference-tuned`."""
    return "fine-tuned" if inputs.align is None else "preference-tuned"


def _tuning_stages(inputs: ReportInputs) -> str:
    """Return the stages that made the final model, at the beginning of a sentence."""
    if inputs.align is None:
        return "Fine-tuning"
    return "Preference tuning" if inputs.finetune is None else "Fine-tuning and preference tuning"


def tuning_sentences(inputs: ReportInputs) -> list[str]:
    """Return what each tuning stage learned from and what came of it; empty before one has finished."""
    sentences = []
    if inputs.finetune is not None:
        tuned = inputs.finetune.facts
        sentences.append(
            f"Fine-tuning: {plural(tuned.steps, 'step')} on {plural(tuned.examples, 'example')},"
            f" loss {tuned.first_loss_nats:.3f} → {tuned.last_loss_nats:.3f}."
        )
    if inputs.align is not None:
        aligned = inputs.align.facts
        sentences.append(
            f"Preference tuning: {plural(aligned.steps, 'step')} on {plural(aligned.pairs, 'pair')},"
            f" loss {aligned.first_loss_nats:.3f} → {aligned.last_loss_nats:.3f}; at the end the chosen answer has the"
            f" larger reward in {percent(aligned.reward_accuracy, signed=False)} of the pairs (half of them by chance)."
        )
    return sentences


def decision_sentences(inputs: ReportInputs) -> list[str]:
    """Return which candidate was chosen and why, in sentences; empty while there is nothing to say."""
    sentences = []
    base, chosen, selected = inputs.base, inputs.chosen, inputs.status.selected
    if selected is not None:
        sentences.append(f"{selected.id} was chosen: {selected.reason}.")
        if base is not None and chosen is not None:
            limit = inputs.spec.gates.max_general_perplexity_increase if inputs.spec else None
            allowed = f", where the gate allows {percent(limit)} on half B" if limit is not None else ""
            sentences.append(
                "Against the base model, over both halves of the held-out text, its domain perplexity is"
                f" {percent(perplexity_change(base, chosen, 'domain'))}"
                f" and its general perplexity {percent(perplexity_change(base, chosen, 'general'))}{allowed}."
            )
    if base is not None and inputs.final is not None:
        sentences.append(
            f"{_tuning_stages(inputs)} then made the final model: domain perplexity "
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
    """Return for each gate whether the chosen candidate and the finished model pass, and the sentence."""
    for candidate in inputs.candidates:
        if candidate.id != inputs.chosen_id:
            continue
        sentences = [
            (verdict.passed, typeset_percents(verdict.message))
            for verdict in (*candidate.verdicts, *_final_verdicts(inputs))
        ]
        if not candidate.passes_a and inputs.spec is not None and inputs.base is not None:
            sentences.insert(0, (False, typeset_percents(breach_on_a(inputs.spec, inputs.base, candidate))))
        return sentences
    return []


def _final_verdicts(inputs: ReportInputs) -> Iterator[Verdict]:
    """Yield what the gates say of the finished model, where tuning made another one of the chosen candidate."""
    if inputs.spec is None or inputs.base is None or inputs.final is None:
        return
    for gate in GATES:
        yield from gate.judge(inputs.spec, GateFacts(FINISHED_MODEL, inputs.base, inputs.final))


def warnings(inputs: ReportInputs) -> list[str]:
    """Return the warnings of the plan, of prepare and of pretraining, each once."""
    of_status = inputs.status.plan.warnings if inputs.status.plan else ()
    sentences = whole_warnings(of_status, inputs.prepare.facts.warnings if inputs.prepare is not None else ())
    if inputs.pretrain is not None:
        sentences += inputs.pretrain.skipped_checkpoints
    return list(dict.fromkeys(sentences))


def whole_warnings(of_status: Sequence[str], of_prepare: Sequence[str]) -> list[str]:
    """Return the warnings of the status and of prepare's report, each once and none cut.

    The status has what fits into a message: some are cut, and the rest is counted. The report has all.
    """
    sentences = list(of_status)
    if of_prepare and not any(_COUNT_OF_MORE.fullmatch(sentence) for sentence in of_prepare):
        sentences = [
            sentence
            for sentence in sentences
            if not _COUNT_OF_MORE.fullmatch(sentence) and not _is_cut_of(sentence, of_prepare)
        ]
    return list(dict.fromkeys((*sentences, *of_prepare)))


def _is_cut_of(sentence: str, others: Sequence[str]) -> bool:
    kept = sentence.removesuffix(CUT_MARK)
    return kept != sentence and any(other.startswith(kept) for other in others)
