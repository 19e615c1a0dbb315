"""Keeps the ledger short: measures lose what the base model's has too, and records that are not needed are dropped.

A finished evaluation's measure is kept without names of tasks and numbers of tokens and bytes, which are those of the
base model's measure. A ledger holds only a few records and a status only a few kilobytes: what dropped records cost is
summed, and all dropped work leaves its name with its number of runs, so that nothing is done twice and no run number is
used again. What has finished keeps what its table and its metrics are read from.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Final

from dapt_contract.base import compact_number
from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.evaluate import EvaluateFacts
from dapt_operator.api.v1alpha1.stored.ledger import MAX_MEASURES, MAX_RECORDS, Ledger, MeasureRecord
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.remembered import remembered

MAX_MEASURES_BYTES: Final = 96 * 1024
_SCORE_FIELDS: Final = (
    "items",
    "score",
    "standard_error",
    "difference",
    "difference_standard_error",
    "score_a",
    "difference_b",
    "difference_b_standard_error",
)
"""Of a score, in this order; its name, side and kind are those of the base model's score."""
_CACHED_MEASURES: Final = 128
_CACHED_LEDGERS: Final = 16


def free_one_record(ledger: Ledger, candidate: str | None) -> Ledger:
    """Return a ledger that can hold one more record.

    First go finished evaluations, the oldest first: their measures are kept in short form. Then what was done for
    another candidate after the selection, the oldest first: its reports are on the volume, and a stage that is needed
    for it again reads them in one short run. Last an evaluation that was given up: it does not run again.

    Args:
        ledger: as it is.
        candidate: whose records stay.
    """
    if len(ledger.runs) < MAX_RECORDS:
        return ledger
    ended = [
        record
        for record in ledger.runs
        if record.candidate is not None and not record.is_open and not record.retry
    ]
    evaluations = [record for record in ended if record.kind == "evaluate"]
    for group in (
        [record for record in evaluations if record.has_succeeded],
        [
            record
            for record in ended
            if record.kind not in ("evaluate", "blend") and record.candidate != candidate
        ],
        evaluations,
    ):
        if group:
            # By fence: the oldest run was created first, whatever its number among the tries of its stage.
            return compact_record(ledger, min(group, key=lambda record: record.fence))
    return ledger


def shorten_evaluations(ledger: Ledger) -> Ledger:
    """Return the ledger with the measures of all finished evaluations in short form; their records stay."""
    for record in ledger.runs:
        if record.kind == "evaluate" and record.has_succeeded and record.facts is not None:
            shortened = _with_measure(ledger.with_record(record.without_facts()), record)
            # Without the base model's measure there is no short form: the facts stay where they are.
            if shortened.measures is not ledger.measures:
                ledger = shortened
    return ledger


def keep_tables(ledger: Ledger, chosen: str | None) -> Ledger:
    """Return the ledger of what has finished: nothing is decided any more, so what decisions needed goes.

    Records of evaluations, blends and other candidates' stages are dropped, but for the newest of each kind, whose
    duration is a metric; and all measures but that of the chosen candidate. Sums, names and run numbers stay for costs
    and cleanup.

    Args:
        ledger: with no open record.
        chosen: id of the candidate that was taken; None without one.
    """
    ledger = shorten_evaluations(ledger)
    newest = {record.kind: record for record in sorted(ledger.runs, key=lambda record: record.fence)}
    for record in ledger.runs:
        is_decided = record.kind in ("evaluate", "blend") or record.candidate not in (None, chosen)
        if is_decided and record is not newest[record.kind]:
            ledger = ledger.without_record(record)
    measures = (record for record in ledger.measures if record.candidate == chosen)
    return ledger.with_measures(measures).reduced_to_tables()


def compact_record(ledger: Ledger, record: RunRecord) -> Ledger:
    """Return the ledger without this record, which has ended; of an evaluation the measure stays in short form."""
    return _with_measure(ledger.without_record(record), record)


def _with_measure(ledger: Ledger, record: RunRecord) -> Ledger:
    facts, base = record.parsed_facts(), base_measure(ledger)
    if not isinstance(facts, EvaluateFacts) or not record.has_succeeded or base is None:
        return ledger
    # One measure a candidate: an evaluation that ran again replaces what it measured before.
    new = MeasureRecord(candidate=facts.candidate, expects=record.expects, text=encode(base, facts.measure))
    measures = [old for old in ledger.measures if old.candidate != new.candidate] + [new]
    # By size too: a status must stay below the API server's limit however many tasks the spec names.
    while len(measures) > MAX_MEASURES or sum(len(kept.text) for kept in measures) > MAX_MEASURES_BYTES:
        lost = max(measures, key=_general_nats)
        measures.remove(lost)
        # A record without its measure would seem to be an evaluation that reported nothing, and run again.
        for of_lost in ledger.runs:
            if of_lost.kind == "evaluate" and of_lost.candidate == lost.candidate:
                ledger = ledger.without_record(of_lost)
    return ledger.with_measures(measures)


def _general_nats(record: MeasureRecord) -> float:
    """Return the general loss on half A: what has forgotten most is the least likely to be chosen, so it goes first."""
    try:
        value = float(json.loads(record.text)["nats"][2])
    except (ValueError, LookupError, TypeError):  # not written by this version
        return math.inf
    return value if math.isfinite(value) else math.inf


def base_measure(ledger: Ledger) -> Measure | None:
    """Return the base model's measure; None before it was measured."""
    facts = ledger.facts(BaselineFacts, "baseline")
    return facts.measure if facts is not None else None


def encode(base: Measure, measured: Measure) -> str:
    """Return a measure in short form: digest, sums of nats, their errors, scores in the order of the base model's."""
    by_name = {score.name: score for score in measured.scores}
    body = {
        "digest": measured.digest,
        "nats": [compact_number(half.nll_nats) for half in _halves(measured)],
        "scores": [_numbers(by_name.get(score.name)) for score in base.scores],
    }
    errors = [half.difference_standard_error_nats for half in _halves(measured)]
    if any(error is not None for error in errors):
        body["errors"] = [compact_number(error) for error in errors]
    return json.dumps(body, separators=(",", ":"))


def _halves(measure: Measure) -> Iterator[Perplexity]:
    yield from (measure.domain.a, measure.domain.b, measure.general.a, measure.general.b)


def _numbers(score: Score | None) -> list[object]:
    if score is None:
        return []
    values = [compact_number(getattr(score, name)) for name in _SCORE_FIELDS]
    # Only None at the end may go: the place of a number is its name.
    while values and values[-1] is None:
        values.pop()
    return values


@remembered(_CACHED_LEDGERS)
def stored_measures(ledger: Ledger, base: Measure | None) -> Mapping[str, Measure]:
    """Return the measures that are kept in short form, by candidate."""
    # Without the base model's measure nothing can be decoded: names and numbers of items are there alone.
    if base is None or not ledger.measures:
        return {}
    measures: dict[str, Measure] = {}
    for record in ledger.measures:
        # A text that another version wrote, or a hand, is no measure: its candidate counts as not measured.
        with contextlib.suppress(ValueError, LookupError, TypeError):
            measures[record.candidate] = decode(base, record.text)
    return measures


# Every reconcile reads all of them, and they change only when an evaluation ends.
@remembered(_CACHED_MEASURES)
def decode(base: Measure, text: str) -> Measure:
    """Return the measure that `encode` has shortened."""
    body = json.loads(text)
    domain_a, domain_b, general_a, general_b = (
        Perplexity(
            nll_nats=float(nats),
            tokens=half.tokens,
            bytes=half.bytes,
            difference_standard_error_nats=error,
        )
        for nats, error, half in zip(
            body["nats"], body.get("errors") or (None,) * 4, _halves(base), strict=True
        )
    )
    scores = (
        Score.model_validate(
            {"name": of_base.name, "side": of_base.side, "kind": of_base.kind}
            | {name: value for name, value in zip(_SCORE_FIELDS, numbers, strict=False) if value is not None}
        )
        for of_base, numbers in zip(base.scores, body["scores"], strict=True)
        if numbers
    )
    return Measure(
        digest=body["digest"],
        domain=SidePerplexity(a=domain_a, b=domain_b),
        general=SidePerplexity(a=general_a, b=general_b),
        scores=tuple(scores),
    )
