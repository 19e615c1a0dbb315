"""Gives the page's rows and points about attempts, candidates and the extended tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dapt_contract.stages.prepare import TokenizerFacts
from dapt_operator.api.v1alpha1.status import CandidateStatus
from dapt_operator.number_format import NOT_MEASURED
from dapt_operator.plan.sizing.grown_tokenizer import break_even_tokens
from dapt_operator.report.inputs import ReportInputs
from dapt_operator.report.tradeoff_charts import AttemptPath, CandidateKind, CandidatePoint
from dapt_operator.report.typography import percent, perplexity

_CANDIDATE_ID = re.compile(r"a(?P<attempt>[0-9]+)-(s[0-9]+|(?P<average>avg[0-9]+))(?P<share>-i[0-9.e-]+)?")

END_TEXTS: Final[Mapping[str, str]] = {
    "Completed": "ran to its end",
    "ForgettingLimit": "stopped: it forgot too much",
    "Diverged": "stopped: it diverged",
    "BudgetReached": "ended: its share of the GPU-hours was used up",
    "Stopped": "was stopped",
}
"""Text for each way in which an attempt ends."""


@dataclass(frozen=True)
class AttemptRow:
    """One row of the table of attempts."""

    number: int
    learning_rate: str
    replay: str
    start: str
    end: str
    reason: str


@dataclass(frozen=True)
class TokenizerRow:
    """Tokens per word of one side before and after the tokenizer was extended."""

    side: str
    before: str
    after: str
    change: str


def candidate_kind(candidate_id: str) -> CandidateKind:
    """Return what a candidate is, by its id."""
    match = _CANDIDATE_ID.fullmatch(candidate_id)
    if match is None:
        return "checkpoint"
    return "interpolation" if match["share"] else "average" if match["average"] else "checkpoint"


def candidate_attempt(candidate: CandidateStatus) -> int:
    """Return the attempt of a candidate, by its row or its id."""
    match = _CANDIDATE_ID.fullmatch(candidate.id)
    return candidate.attempt or (int(match["attempt"]) if match else 1)


def candidate_points(inputs: ReportInputs) -> list[CandidatePoint]:
    """Return every candidate that was measured, in the plane of gain and forgetting."""
    return [
        CandidatePoint(
            candidate.id,
            candidate_attempt(candidate),
            candidate_kind(candidate.id),
            candidate.forgetting,
            candidate.gain,
            candidate.passes,
        )
        for candidate in inputs.status.candidates
        if candidate.forgetting is not None and candidate.gain is not None
    ]


def attempt_paths(inputs: ReportInputs) -> list[AttemptPath]:
    """Return forgetting at the checkpoints of each attempt, over all steps since the base model."""
    candidates = {candidate.id: candidate for candidate in inputs.status.candidates}
    paths: dict[int, AttemptPath] = {}
    for attempt in inputs.status.attempts:
        start = candidates.get(attempt.start) if attempt.start else None
        start_step = paths[candidate_attempt(start)].start_step + (start.step or 0) if start else 0
        readings = [
            (start_step + candidate.step, candidate.forgetting)
            for candidate in inputs.status.candidates
            if candidate_attempt(candidate) == attempt.number
            and candidate_kind(candidate.id) == "checkpoint"
            and candidate.step is not None
            and candidate.forgetting is not None
        ]
        start_forgetting = (start.forgetting or 0.0) if start else 0.0
        paths[attempt.number] = AttemptPath(
            attempt.number, start_step, start_forgetting, readings, attempt.ended_by or ""
        )
    return list(paths.values())


def attempt_rows(inputs: ReportInputs) -> list[AttemptRow]:
    """Return one row for each attempt: its numbers, where it started, how it ended, and why another followed."""
    return [
        AttemptRow(
            number=attempt.number,
            learning_rate=NOT_MEASURED if attempt.learning_rate is None else f"{attempt.learning_rate:.3g}",
            replay=percent(attempt.replay_fraction, signed=False),
            start=attempt.start or "the base model",
            end=END_TEXTS.get(attempt.ended_by or "", attempt.ended_by or "is running"),
            reason=attempt.reason or "",
        )
        for attempt in inputs.status.attempts
    ]


def tokenizer_rows(inputs: ReportInputs) -> list[TokenizerRow]:
    """Return tokens per word before and after the tokenizer was extended; empty where it was not."""
    tokenizer = _extended_tokenizer(inputs)
    if tokenizer is None:
        return []
    return [
        _tokenizer_row(
            "domain", tokenizer.domain_tokens_per_word_before, tokenizer.domain_tokens_per_word_after
        ),
        _tokenizer_row(
            "general", tokenizer.general_tokens_per_word_before, tokenizer.general_tokens_per_word_after
        ),
    ]


def _tokenizer_row(side: str, before: float, after: float) -> TokenizerRow:
    change = percent(after / before - 1) if before else NOT_MEASURED
    return TokenizerRow(side, perplexity(before), perplexity(after), change)


def tokenizer_text(inputs: ReportInputs) -> str:
    """Return how many tokens the tokenizer learned and what they brought; empty where it was not extended."""
    tokenizer = _extended_tokenizer(inputs)
    if tokenizer is None:
        return ""
    text = (
        f"The tokenizer learned {tokenizer.added_tokens:,} tokens from the domain's text. Perplexities here are per"
        " token of the base model's tokenizer, and bits per byte compare any two models."
    )
    first = inputs.pretrains.get(1)
    if inputs.base is None or first is None or not first.facts.checkpoints:
        return text
    tokens = break_even_tokens(inputs.base, first.facts)
    if tokens is None:
        return f"{text} Byte for byte the last checkpoint predicts the domain worse than the base model."
    return f"{text} Byte for byte it predicts the domain as well as the base model from {tokens:,} training tokens on."


def _extended_tokenizer(inputs: ReportInputs) -> TokenizerFacts | None:
    return inputs.prepare.facts.tokenizer if inputs.prepare else None
