"""Attempts and candidates as the page tells them: what was tried, why it was given up, what the front looks like."""

from __future__ import annotations

import re
from typing import Any

from dapt_operator.api.v1alpha1.status import CandidateStatus
from dapt_operator.number_format import NOT_MEASURED
from dapt_operator.plan.sizing.grown_tokenizer import break_even_tokens
from dapt_operator.report.inputs import Material
from dapt_operator.report.tradeoff_charts import AttemptPath, CandidateKind, Offer
from dapt_operator.report.typography import percent, perplexity

_ID = re.compile(r"a(?P<attempt>[0-9]+)-(s[0-9]+|(?P<average>avg[0-9]+))(?P<share>-i[0-9.e-]+)?")
ENDS = {
    "Completed": "ran to its end",
    "ForgettingLimit": "stopped: it forgot too much",
    "Diverged": "stopped: it diverged",
    "BudgetReached": "ended: its share of the GPU-hours was used up",
    "Stopped": "was stopped",
}


def kind_of(candidate_id: str) -> CandidateKind:
    """What a candidate is, by its id."""
    found = _ID.fullmatch(candidate_id)
    if found is None:
        return "checkpoint"
    return "interpolation" if found["share"] else "average" if found["average"] else "checkpoint"


def attempt_of(candidate_id: str | None) -> int | None:
    """The attempt in an id; None when there is none."""
    found = _ID.fullmatch(candidate_id or "")
    return int(found["attempt"]) if found else None


def offers(material: Material) -> list[Offer]:
    """Every candidate that was measured, in the plane of gain and forgetting."""
    return [
        Offer(one.id, _attempt(one), kind_of(one.id), one.forgetting, one.gain, one.passes)
        for one in material.status.candidates
        if one.forgetting is not None and one.gain is not None
    ]


def _attempt(one: CandidateStatus) -> int:
    return one.attempt or attempt_of(one.id) or 1


def paths(material: Material) -> list[AttemptPath]:
    """Forgetting at the checkpoints of each attempt, on the axis of all steps from the base model on."""
    by_id = {one.id: one for one in material.status.candidates}
    found: dict[int, AttemptPath] = {}
    for one in material.status.attempts:
        begun = by_id.get(one.start) if one.start else None
        before = found[_attempt(begun)].start_step + (begun.step or 0) if begun else 0
        readings = [
            (before + item.step, item.forgetting)
            for item in material.status.candidates
            if _attempt(item) == one.number
            and kind_of(item.id) == "checkpoint"
            and item.step is not None
            and item.forgetting is not None
        ]
        found[one.number] = AttemptPath(
            one.number, before, (begun.forgetting or 0.0) if begun else 0.0, readings, one.ended_by or ""
        )
    return list(found.values())


def attempt_rows(material: Material) -> list[dict[str, Any]]:
    """One row an attempt: its numbers, where it began, how it ended, why there was another after it."""
    return [
        {
            "number": one.number,
            "rate": NOT_MEASURED if one.learning_rate is None else f"{one.learning_rate:.3g}",
            "replay": percent(one.replay_fraction, signed=False),
            "start": one.start or "the base model",
            "ended": ENDS.get(one.ended_by or "", one.ended_by or "is running"),
            "reason": one.reason or "",
        }
        for one in material.status.attempts
    ]


def tokenizer_rows(material: Material) -> list[dict[str, str]]:
    """Tokens per word before and after the tokenizer grew; empty where it did not."""
    grown = material.prepare.facts.tokenizer if material.prepare else None
    if grown is None:
        return []
    rows = []
    for side in ("domain", "general"):
        before = float(getattr(grown, f"{side}_tokens_per_word_before"))
        after = float(getattr(grown, f"{side}_tokens_per_word_after"))
        change = percent(after / before - 1) if before else NOT_MEASURED
        rows.append(
            {"side": side, "before": perplexity(before), "after": perplexity(after), "change": change}
        )
    return rows


def tokenizer_words(material: Material) -> str:
    """How much the tokenizer grew, in a sentence; empty where it did not."""
    grown = material.prepare.facts.tokenizer if material.prepare else None
    if grown is None:
        return ""
    words = (
        f"The tokenizer learned {grown.added_tokens:,} tokens from the domain's text. Perplexities here are a token of"
        " the base model's tokenizer, and bits per byte compare any two models."
    )
    first = material.pretrains.get(1)
    if material.base is None or first is None or not first.facts.checkpoints:
        return words
    tokens = break_even_tokens(material.base, first.facts)
    if tokens is None:
        return (
            f"{words} Byte for byte no checkpoint at the end predicts the domain as well as the base model."
        )
    return f"{words} Byte for byte it predicts the domain as well as the base model from {tokens:,} training tokens on."
