"""Records that the ledger lets go of: what they cost is summed, what was measured is kept in a shorter form.

A ledger has room for so many records and a status for so many bytes. A finished evaluation leaves its measure without
what the base model's measure says already (names of tasks, numbers of tokens and bytes), and every lineage that was let
go leaves its name with its number of tries, so that nothing is done twice and no number of a try is used again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from dapt_contract.base import compact_number
from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.evaluate import EvaluateFacts
from dapt_operator.api.v1alpha1.ledger import (
    MAX_CLOSED,
    MAX_MEASURES,
    MAX_RECORDS,
    ClosedRuns,
    Ledger,
    MeasureRecord,
    RunRecord,
)
from dapt_operator.plan.ledger.records import Lineage, facts_of, find

ROOM_FOR_MEASURES_BYTES: Final = 96 * 1024
_NUMBERS: Final = (
    "items",
    "score",
    "standard_error",
    "difference",
    "difference_standard_error",
    "score_a",
    "difference_b",
    "difference_b_standard_error",
)
"""Of a score, in this order; name, side and kind are the base model's."""
_CACHED: Final = 16


def closed_run_counts(ledger: Ledger) -> Mapping[Lineage, int]:
    """Number of tries of every lineage that was let go."""
    return _closed(ledger.closed.lineages) if ledger.closed is not None else {}


@lru_cache(maxsize=_CACHED)
def _closed(lineages: tuple[str, ...]) -> Mapping[Lineage, int]:
    found: dict[Lineage, int] = {}
    for line in lineages:
        stage, attempt, candidate, tries = line.split(" ")
        found[(stage, int(attempt), candidate or None)] = int(tries)
    return found


def compact_record(ledger: Ledger, record: RunRecord) -> Ledger:
    """The ledger without this record, which has ended."""
    closed = ledger.closed or ClosedRuns()
    name = f"{record.stage} {record.attempt} {record.candidate or ''} {record.try_number}"
    others = tuple(line for line in closed.lineages if not line.startswith(name.rpartition(" ")[0] + " "))
    seconds, failures = dict(closed.accelerator_seconds), dict(closed.failures)
    seconds[record.kind] = seconds.get(record.kind, 0.0) + record.accelerator_seconds
    for budget, number in record.failures.items():
        failures[budget] = failures.get(budget, 0) + number
    closed = ClosedRuns(
        lineages=(*others, name)[-MAX_CLOSED:],
        accelerator_seconds=seconds,
        failures=failures,
        restarts=closed.restarts + record.restarts,
    )
    kept = tuple(one for one in ledger.runs if one is not record)
    ledger = ledger.model_copy(update={"runs": kept, "closed": closed})
    return _with_measure(ledger, record)


def _with_measure(ledger: Ledger, record: RunRecord) -> Ledger:
    facts, base = facts_of(record), base_measure(ledger)
    if not isinstance(facts, EvaluateFacts) or record.state != "Succeeded" or base is None:
        return ledger
    new = MeasureRecord(candidate=facts.candidate, expects=record.expects, text=encode(base, facts.measure))
    measures = [one for one in ledger.measures if one.candidate != new.candidate] + [new]
    while len(measures) > MAX_MEASURES or sum(len(one.text) for one in measures) > ROOM_FOR_MEASURES_BYTES:
        measures.remove(max(measures, key=_general_nats))
    return ledger.model_copy(update={"measures": tuple(measures)})


def _general_nats(record: MeasureRecord) -> float:
    """On half A: what has forgotten most is the least likely to be chosen, so it goes first."""
    value = float(json.loads(record.text)["nats"][2])
    return value if math.isfinite(value) else math.inf


def base_measure(ledger: Ledger) -> Measure | None:
    """The base model's."""
    facts = facts_of(find(ledger, "baseline", 1, None))
    return facts.measure if isinstance(facts, BaselineFacts) else None


def encode(base: Measure, measured: Measure) -> str:
    """A measure in short: its digest, four sums of nats, and numbers by task in the order of the base's scores."""
    by_name = {score.name: score for score in measured.scores}
    body = {
        "digest": measured.digest,
        "nats": [compact_number(half.nll_nats) for half in _halves(measured)],
        "scores": [_numbers(by_name.get(score.name)) for score in base.scores],
    }
    return json.dumps(body, separators=(",", ":"))


def _halves(measure: Measure) -> Iterator[Perplexity]:
    yield from (measure.domain.a, measure.domain.b, measure.general.a, measure.general.b)


def _numbers(score: Score | None) -> list[Any]:
    if score is None:
        return []
    values = [compact_number(getattr(score, name)) for name in _NUMBERS]
    while values and values[-1] is None:
        values.pop()
    return values


def stored_measures(ledger: Ledger, base: Measure | None) -> Mapping[str, Measure]:
    """The measures that were kept in short, by candidate."""
    if base is None or not ledger.measures:
        return {}
    return _decoded(tuple((one.candidate, one.text) for one in ledger.measures), base)


@lru_cache(maxsize=_CACHED)
def _decoded(texts: tuple[tuple[str, str], ...], base: Measure) -> Mapping[str, Measure]:
    return {candidate: decode(base, text) for candidate, text in texts}


def decode(base: Measure, text: str) -> Measure:
    """The measure that `encode` has shortened."""
    body = json.loads(text)
    a, b, c, d = (
        Perplexity(nll_nats=float(nats), tokens=half.tokens, bytes=half.bytes)
        for nats, half in zip(body["nats"], _halves(base), strict=True)
    )
    scores = (
        Score.model_validate(
            {"name": of_base.name, "side": of_base.side, "kind": of_base.kind}
            | {name: value for name, value in zip(_NUMBERS, numbers, strict=False) if value is not None}
        )
        for of_base, numbers in zip(base.scores, body["scores"], strict=True)
        if numbers
    )
    return Measure(
        digest=body["digest"],
        domain=SidePerplexity(a=a, b=b),
        general=SidePerplexity(a=c, b=d),
        scores=tuple(scores),
    )


def free_one_record(ledger: Ledger, candidate: str | None) -> Ledger:
    """A ledger with a place for one more record.

    First go finished evaluations, the oldest first: their measures are kept in short (`past`). Then what was done for
    another candidate after the selection, the oldest first: its reports are on the volume, and a stage that is asked
    for it again reads them in one short try. Last an evaluation that was given up: it is not tried again.

    Args:
        ledger: as it is.
        candidate: whose records stay.
    """
    if len(ledger.runs) < MAX_RECORDS:
        return ledger
    ended = [
        one for one in ledger.runs if one.candidate is not None and one.state != "Open" and not one.retry
    ]
    for group in (
        [one for one in ended if one.kind == "evaluate" and one.state == "Succeeded"],
        [one for one in ended if one.kind not in ("evaluate", "blend") and one.candidate != candidate],
        [one for one in ended if one.kind == "evaluate"],
    ):
        if group:
            return compact_record(ledger, min(group, key=lambda one: one.fence))
    return ledger
