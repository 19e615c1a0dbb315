"""Where the best checkpoint lies, and whether dapt's selection finds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from science import controller
from science.experiments.common import (
    SEEDS,
    Experiment,
    Outcome,
    Records,
    Sample,
    Table,
    Verdict,
    followed_run,
    open_verdict,
    over,
)
from science.model import Rate
from science.plots import Series, lines
from science.settings import Adaptation

OPEN_GATES = {"maxGeneralPerplexityIncrease": 100.0}
"""So wide that gain alone decides."""


@dataclass(frozen=True)
class Kind:
    """A run with the gates under which its best checkpoint is looked for."""

    run: Adaptation
    gates: Mapping[str, float]


KINDS = {
    "cosine": Kind(followed_run(0.25), OPEN_GATES),
    "constant rate": Kind(Adaptation(rate=Rate(peak=2e-4, schedule="constant"), readings=10), {}),
    "many epochs": Kind(Adaptation(domain="small", readings=10), OPEN_GATES),
}
"""A constant rate learns to the end in 300 steps, and forgets to the end too: there dapt's default gates decide."""
LARGEST_REGRET_NATS = 0.01
"""Gain on half B that the choice may miss: a fifth of what the schedule alone brought in the pilot."""


def judge(records: Records) -> Outcome:
    """Where each kind has its best checkpoint, and the selection on all of them."""
    verdicts = (
        _place(records, "best.cosine-ends-best", "cosine", at_end=True),
        _place(records, "best.constant-rate-inside", "constant rate", at_end=False),
        _place(records, "best.many-epochs-inside", "many epochs", at_end=False),
        _selector(records),
    )
    return Outcome(verdicts, (_table(records),))


def _runs(records: Records, adaptation: Adaptation) -> list[Mapping[str, Any]]:
    found = [records.run(replace(adaptation, seed=seed)) for seed in SEEDS]
    return [run for run in found if run is not None]


def best_reading(records: Records, run: Mapping[str, Any], kind: Kind, half: str) -> Mapping[str, Any] | None:
    """The reading with the lowest domain loss on a half, of those within the limit there; None when none is."""
    limit = controller.spec(gates=kind.gates).gates.max_general_perplexity_increase
    base = records.base_losses(run)[f"general_{half}"]
    passing = [r for r in run["readings"] if r[f"general_{half}"] - base <= math.log1p(limit)]
    return min(passing, key=lambda reading: reading[f"domain_{half}"], default=None)


def _place(records: Records, name: str, kind: str, *, at_end: bool) -> Verdict:
    missing = open_verdict(name, records, over(SEEDS, [KINDS[kind].run]))
    if missing:
        return missing
    shares = []
    for run in _runs(records, KINDS[kind].run):
        best = best_reading(records, run, KINDS[kind], "b")
        shares.append(best["step"] / run["readings"][-1]["step"] if best else math.nan)
    holds = all(share == 1.0 for share in shares) if at_end else all(share < 1.0 for share in shares)
    return Verdict(
        name,
        holds,
        f"the best checkpoint of {kind} is at {', '.join(f'{share:.0%}' for share in shares)} of the steps",
    )


def choice_of(records: Records, run: Mapping[str, Any], kind: Kind) -> tuple[int | None, float]:
    """(step that dapt takes, gain on half B that it misses against the best reading there)."""
    taken = controller.chosen(controller.spec(gates=kind.gates), records.base_losses(run), run["readings"])
    best = best_reading(records, run, kind, "b")
    if taken is None or best is None:
        return None, math.inf
    losses = {f"a1-s{reading['step']}": reading["domain_b"] for reading in run["readings"]}
    return int(taken.rpartition("s")[2]), float(losses[taken] - best["domain_b"])


def _selector(records: Records) -> Verdict:
    name = "best.selector"
    missing = open_verdict(name, records, over(SEEDS, [kind.run for kind in KINDS.values()]))
    if missing:
        return missing
    choices = [choice_of(records, run, kind) for kind in KINDS.values() for run in _runs(records, kind.run)]
    worst = max(regret for _, regret in choices)
    return Verdict(
        name,
        worst <= LARGEST_REGRET_NATS,
        f"chosen on half A, dapt's checkpoint misses at most {worst:.4f} nats of the best gain on half B over "
        f"{len(choices)} runs of {len(KINDS)} kinds (allowed: {LARGEST_REGRET_NATS:g})",
    )


def _table(records: Records) -> Table:
    rows = []
    for label, kind in KINDS.items():
        for run in _runs(records, kind.run):
            chosen, regret = choice_of(records, run, kind)
            best = [best_reading(records, run, kind, half) for half in ("a", "b")]
            steps = [str(reading["step"]) if reading else "none passes" for reading in best]
            seed, epochs = str(run["settings"]["seed"]), f"{run['domain_epochs']:.1f}"
            rows.append((label, seed, epochs, *steps, str(chosen or "none"), f"{regret:.4f}"))
    header = (
        "kind",
        "seed",
        "epochs",
        "best on A, step",
        "best on B, step",
        "dapt takes",
        "missed on B, nats",
    )
    return Table("The best checkpoint", header, tuple(rows or [("", "", "", "", "", "", "not run yet")]))


def figure(records: Records) -> bytes:
    """Domain loss by step, over the base model's."""
    series = []
    for label, kind in KINDS.items():
        runs = _runs(records, kind.run)
        steps = [reading["step"] for reading in runs[0]["readings"]] if runs else []
        points = [
            (
                Sample((float(step),)),
                Sample(
                    tuple(run["readings"][place]["domain_b"] for run in runs if place < len(run["readings"]))
                ),
            )
            for place, step in enumerate(steps)
        ]
        series.append(Series(label, tuple(points)))
    return lines(series, x="step", y="domain loss on half B, nats")


EXPERIMENT = Experiment(
    name="best",
    title="The best checkpoint",
    hypothesis=(
        "With a rate that decays the last checkpoint is the best for the domain; with many epochs over little text, "
        "and under the gates with a constant rate, it lies inside; dapt's selection finds each, whichever it is."
    ),
    thresholds=(
        "cosine, 25 % replay: of ten checkpoints the last has the lowest domain loss on half B, for every seed",
        "constant rate of 2e-4, no replay: the lowest domain loss among those that pass dapt's default limit on half B "
        "is before the last, for every seed",
        "40,000 domain tokens, read for as many epochs as fit: the lowest domain loss is before the last, the same",
        f"the checkpoint that dapt takes by half A misses at most {LARGEST_REGRET_NATS:g} nats of the best on half B",
    ),
    runs=lambda seeds: over(seeds, [kind.run for kind in KINDS.values()]),
    judge=judge,
    figure=figure,
    claims=("best.cosine-ends-best", "best.constant-rate-inside", "best.many-epochs-inside", "best.selector"),
)
