"""Builds the table of candidates, and what the status says of the one that it is about."""

from __future__ import annotations

import math
from typing import Final

from dapt_contract.measure import Measure, Score, SidePerplexity
from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.base import MAX_MESSAGE, MAX_TEXT
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.api.v1alpha1.status import MAX_CANDIDATES, CandidateStatus, SelectedStatus, TaskScore
from dapt_operator.plan.chain_parts.assess import ChainInputs
from dapt_operator.plan.chain_parts.position import Position
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.gates.gain import gain, gain_by_perplexity, has_task_gain
from dapt_operator.plan.gates.noise import error_of_ratio
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.selection.choose import NeedsMeasure, Selected, breach_on_a
from dapt_operator.plan.transitions import Action
from dapt_operator.remembered import remembered

_CACHED_ROWS: Final = 128
_CACHED_TABLES: Final = 16


def candidate_statuses(
    inputs: ChainInputs, position: Position, chosen: Candidate | None
) -> tuple[CandidateStatus, ...]:
    """Return the candidates with what was measured; at most 100, those that matter most for the choice."""
    base = position.facts.base
    if base is None:
        return ()
    return _candidate_statuses(inputs.spec, base, position.candidates, chosen)


# The candidates are the same objects until a run reports, and with them all rows.
@remembered(_CACHED_TABLES)
def _candidate_statuses(
    spec: DomainAdaptationSpec, base: Measure, known: tuple[Candidate, ...], chosen: Candidate | None
) -> tuple[CandidateStatus, ...]:
    listed = _listed_candidates(known, chosen)
    return tuple(_candidate_status(spec, base, candidate) for candidate in listed)


def _listed_candidates(known: tuple[Candidate, ...], chosen: Candidate | None) -> tuple[Candidate, ...]:
    """Return at most 100 in their order: the chosen one; then what passes the perplexity gate; then what was evaluated;
    the newest first of each."""
    if len(known) <= MAX_CANDIDATES:
        return known

    def rank(index: int) -> tuple[bool, bool, bool, int]:
        candidate = known[index]
        is_chosen = chosen is not None and candidate.id == chosen.id
        return (not is_chosen, not candidate.passes_a, not candidate.is_evaluated, -index)

    indices = sorted(range(len(known)), key=rank)[:MAX_CANDIDATES]
    return tuple(known[index] for index in sorted(indices))


def _candidate_status(spec: DomainAdaptationSpec, base: Measure, candidate: Candidate) -> CandidateStatus:
    message = candidate.why_unmeasurable or candidate.first_breach
    if not message and not candidate.passes_a:
        message = breach_on_a(spec, base, candidate)
    row = _row_of_measure(
        spec, base, candidate.measure, candidate.is_evaluated, candidate.passes_a and candidate.passes
    )
    return _candidate_row(row, candidate.id, candidate.attempt, candidate.step, candidate.digest, message)


@remembered(_CACHED_ROWS)
def _candidate_row(
    row: CandidateStatus, candidate: str, attempt: int, step: int | None, digest: str, message: str
) -> CandidateStatus:
    return row.with_values(
        id=candidate,
        attempt=attempt,
        step=step,
        digest=digest,
        message=shortened(message, MAX_MESSAGE) or None,
    )


@remembered(_CACHED_ROWS)
def _row_of_measure(
    spec: DomainAdaptationSpec, base: Measure, measure: Measure, is_evaluated: bool, passes: bool
) -> CandidateStatus:
    """Return what a candidate's row has of its measure; its name is still to be filled in."""
    weights = spec.selection.weights
    has_full_gain = is_evaluated and has_task_gain(weights, measure)
    is_judged = is_evaluated or not has_scores(spec)
    return CandidateStatus(
        id="",
        attempt=1,
        digest="",
        domain_perplexity=rounded(measure.domain.both.perplexity),
        general_perplexity=rounded(measure.general.both.perplexity),
        forgetting=rounded(perplexity.increase(base.general, measure.general, "both")),
        forgetting_standard_error=_error(base.general, measure.general),
        domain_perplexity_decrease=rounded(-perplexity.increase(base.domain, measure.domain, "both")),
        domain_perplexity_decrease_standard_error=_error(base.domain, measure.domain),
        gain=rounded(gain_by_perplexity(weights, base, measure, "both")),
        gain_with_tasks=rounded(gain(weights, base, measure, "both")) if has_full_gain else None,
        # A score that is no number is named by its gate.
        tasks={score.name: _task_score(score) for score in measure.scores if math.isfinite(score.score)},
        # A gate that it fails already is final; that it passes is known once all gates have judged.
        passes=passes if is_judged or not passes else None,
    )


def _error(base: SidePerplexity, measured: SidePerplexity) -> float | None:
    """Return the standard error of a side's perplexity over the base model's, to two digits: it is known to no more."""
    error = error_of_ratio(base, measured)
    return float(f"{error:.2g}") if error is not None and math.isfinite(error) else None


def gate_results(position: Position) -> dict[str, bool] | None:
    """Return by gate whether the candidate that the status is about passes it; None before any gate has judged."""
    shown = _shown_candidate(position)
    results: dict[str, bool] = {}
    for verdict in shown.verdicts if shown is not None else ():
        results[verdict.gate] = results.get(verdict.gate, True) and verdict.passed
    return results or None


def task_drop_points(position: Position) -> dict[str, float] | None:
    """Return what the same candidate lost on each general task; None before one was measured."""
    shown = _shown_candidate(position)
    drops: dict[str, float] = {}
    for score in shown.measure.of_side("general") if shown is not None else ():
        points = None if score.difference is None else rounded(-100 * score.difference)
        if points is not None:
            drops[score.name] = points
    return drops or None


def _shown_candidate(position: Position) -> Candidate | None:
    """Return the candidate that was selected, else the last one."""
    selected = selected_status(position)
    for candidate in position.candidates:
        if selected is not None and candidate.id == selected.id:
            return candidate
    return position.candidates[-1] if position.candidates else None


def _task_score(score: Score) -> TaskScore:
    error = score.difference_standard_error
    return TaskScore(
        score=score.score,
        change_points=None if score.difference is None else rounded(100 * score.difference),
        standard_error_points=None if error is None else rounded(100 * error),
    )


def rounded(value: float) -> float | None:
    """Return six significant digits; None for what is not a number, which JSON cannot hold."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def selected_status(position: Position) -> SelectedStatus | None:
    """Return the candidate that was taken; when the budget ended first, the best so far."""
    choice = position.choice
    if isinstance(choice, Selected):
        candidate, reason = choice.candidate, choice.reason
    elif isinstance(choice, NeedsMeasure) and position.action is Action.END:
        candidate = choice.candidate
        reason = "largest gain by perplexity when limits.gpuHours was used up; its tasks were not measured"
        if candidate.is_evaluated:
            reason = "largest gain so far when limits.gpuHours was used up; not all candidates were measured"
    else:
        return None
    return SelectedStatus(id=candidate.id, reason=shortened(reason, MAX_TEXT), digest=candidate.digest)
