"""Where the rows of new tokens begin: constituents' means or random values, in bits a byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from science.experiments.common import (
    CLEAR,
    SEEDS,
    Experiment,
    Outcome,
    Records,
    Sample,
    Table,
    Verdict,
    deviations,
    effect,
    open_verdict,
    over,
)
from science.plots import Series, lines
from science.rows import READING_STEPS, NewRows

WORDS = ("known", "foreign")
BEGINNINGS = {
    "old": "old tokenizer",
    "mean": "means",
    "random-head": "means, random head",
    "random": "random",
}
RUNS = {(words, start): NewRows(words=words, beginning=start) for words in WORDS for start in BEGINNINGS}
TIED_BITS = 0.01
"""A hundredth of a bit a byte: what the pilot's beginnings were apart after 200 steps on foreign words."""
EARLY = READING_STEPS[1]


def judge(records: Records) -> Outcome:
    """Words that the base can spell, the head's part in it, foreign words."""
    verdicts = (_known(records), _head(records), _foreign(records))
    return Outcome(verdicts, tuple(_table(records, words) for words in WORDS))


def _at(step: int) -> Callable[[Mapping[str, Any]], float]:
    def value(run: Mapping[str, Any]) -> float:
        return float(next(r["bits_per_byte"] for r in run["readings"] if r["step"] == step))

    return value


def _bits(records: Records, words: str, start: str, step: int) -> Sample:
    return records.over_seeds(RUNS[words, start], _at(step))


def _known(records: Records) -> Verdict:
    name = "rows.known"
    missing = open_verdict(name, records, over(SEEDS, [RUNS["known", "mean"], RUNS["known", "random"]]))
    if missing:
        return missing
    mean, random = (_bits(records, "known", start, EARLY) for start in ("mean", "random"))
    first_mean, first_random = (_bits(records, "known", start, 0) for start in ("mean", "random"))
    apart = effect(mean, random)
    return Verdict(
        name,
        first_mean.mean < first_random.mean and apart > CLEAR,
        f"words that the base can spell begin at {first_mean.mean:.3f} bits a byte with constituents' means and at "
        f"{first_random.mean:.3f} at random; after {EARLY} steps {mean.mean:.3f} and {random.mean:.3f}, "
        f"{apart:.1f} seed deviations apart",
    )


def _head(records: Records) -> Verdict:
    name = "rows.head"
    starts = ("mean", "random-head", "random")
    missing = open_verdict(name, records, over(SEEDS, [RUNS["known", start] for start in starts]))
    if missing:
        return missing
    mean, head, random = (_bits(records, "known", start, 0).mean for start in starts)
    share = (head - mean) / (random - mean) if random != mean else 0.0
    return Verdict(
        name,
        share > 0.5,
        f"before any step a random head with a good embedding brings {share:.0%} of the harm of random rows in both "
        f"({mean:.3f}, {head:.3f} and {random:.3f} bits a byte)",
    )


def _foreign(records: Records) -> Verdict:
    name = "rows.foreign-ties"
    starts = ("mean", "random")
    missing = open_verdict(name, records, over(SEEDS, [RUNS["foreign", start] for start in starts]))
    if missing:
        return missing
    mean, random = (_bits(records, "foreign", start, READING_STEPS[-1]) for start in starts)
    return Verdict(
        name,
        abs(random.mean - mean.mean) <= TIED_BITS,
        f"after {READING_STEPS[-1]} steps on words foreign to the base, means are at {mean.mean:.3f} and random rows "
        f"at {random.mean:.3f} bits a byte ({random.mean - mean.mean:+.3f}; a tie is within {TIED_BITS:g})",
    )


def _table(records: Records, words: str) -> Table:
    rows = []
    for start, label in BEGINNINGS.items():
        first = records.run(over((SEEDS[0],), [RUNS[words, start]])[0])
        cells = [_bits(records, words, start, step).text for step in READING_STEPS]
        apart = deviations(_bits(records, words, "mean", EARLY), _bits(records, words, start, EARLY))
        tokens = f"{first['held_out_tokens']:,}" if first else ""
        rows.append((label, *cells, "" if start == "mean" else apart, tokens))
    header = (
        "rows begin as",
        *(f"bits a byte, step {step}" for step in READING_STEPS),
        f"above means at step {EARLY}, deviations",
        "held-out tokens",
    )
    return Table(f"Words {words} to the base", header, tuple(rows))


def figure(records: Records) -> bytes:
    """Known words, by step."""
    series = []
    for start, label in BEGINNINGS.items():
        points = [(Sample((float(step),)), _bits(records, "known", start, step)) for step in READING_STEPS]
        series.append(Series(label, tuple(points)))
    return lines(series, x="step", y="bits a byte, words that the base can spell")


EXPERIMENT = Experiment(
    name="rows",
    title="Rows of new tokens",
    hypothesis=(
        "New tokens for words that the base can spell begin better with the means of their constituents' rows than at "
        "random, and the head is what matters; for foreign words the beginnings soon tie."
    ),
    thresholds=(
        f"known words: means are below random rows at step 0, and after {EARLY} steps still by {CLEAR:g} deviations",
        "known words, step 0: random rows in the head alone do more than half of the harm of random rows in both",
        f"foreign words: after {READING_STEPS[-1]} steps means and random rows are within {TIED_BITS:g} bits a byte",
    ),
    runs=lambda seeds: over(seeds, list(RUNS.values())),
    judge=judge,
    figure=figure,
    claims=("rows.known", "rows.head", "rows.foreign-ties"),
)
