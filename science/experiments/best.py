"""Where the best checkpoint lies, and whether dapt's selection finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
from science.run import Adaptation

COSINE = followed_run(0.25)
CONSTANT = Adaptation(replay=0.25, rate=Rate(peak=2e-3, schedule="constant"), readings=10)
EPOCHS = Adaptation(domain="small", replay=0.0, readings=10)
KINDS = {
    "cosine": COSINE,
    "constant rate": CONSTANT,
    "many epochs": EPOCHS,
}
LARGEST_REGRET_NATS = 0.01
"""Gain on half B that the choice may miss: a fifth of what the schedule alone brought in the pilot."""
OPEN_GATES = {"maxGeneralPerplexityIncrease": 100.0}
"""So wide that gain alone decides: this is about finding the best, the gates have their own experiment."""


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


def best_place(run: Mapping[str, Any], half: str) -> int:
    """Which reading has the lowest domain loss on a half, from 0."""
    losses = [reading[f"domain_{half}"] for reading in run["readings"]]
    return losses.index(min(losses))


def _share(run: Mapping[str, Any], half: str) -> float:
    return float(run["readings"][best_place(run, half)]["step"] / run["readings"][-1]["step"])


def _place(records: Records, name: str, kind: str, *, at_end: bool) -> Verdict:
    missing = open_verdict(name, records, over(SEEDS, [KINDS[kind]]))
    if missing:
        return missing
    shares = [_share(run, "b") for run in _runs(records, KINDS[kind])]
    holds = all(share == 1.0 for share in shares) if at_end else all(share < 1.0 for share in shares)
    return Verdict(
        name,
        holds,
        f"the lowest domain loss of {kind} is at {', '.join(f'{share:.0%}' for share in shares)} of the steps",
    )


def choice_of(records: Records, run: Mapping[str, Any]) -> tuple[int | None, float]:
    """(step that dapt takes, gain on half B that it misses against the best reading there)."""
    asked = controller.spec(gates=OPEN_GATES)
    taken = controller.chosen(asked, records.base_losses(run), run["readings"])
    losses = {f"a1-s{reading['step']}": reading["domain_b"] for reading in run["readings"]}
    if taken is None:
        return None, float("inf")
    return int(taken.rpartition("s")[2]), float(losses[taken] - min(losses.values()))


def _selector(records: Records) -> Verdict:
    name = "best.selector"
    missing = open_verdict(name, records, over(SEEDS, list(KINDS.values())))
    if missing:
        return missing
    choices = [choice_of(records, run) for kind in KINDS.values() for run in _runs(records, kind)]
    worst = max(regret for _, regret in choices)
    return Verdict(
        name,
        worst <= LARGEST_REGRET_NATS,
        f"chosen on half A, dapt's checkpoint misses at most {worst:.4f} nats of the best gain on half B over "
        f"{len(choices)} runs of {len(KINDS)} kinds (allowed: {LARGEST_REGRET_NATS:g})",
    )


def _table(records: Records) -> Table:
    rows = []
    for kind, adaptation in KINDS.items():
        for run in _runs(records, adaptation):
            chosen, regret = choice_of(records, run)
            steps = [run["readings"][best_place(run, half)]["step"] for half in ("a", "b")]
            rows.append(
                (
                    kind,
                    str(run["settings"]["seed"]),
                    f"{run['domain_epochs']:.1f}",
                    *map(str, steps),
                    str(chosen or "none"),
                    f"{regret:.4f}",
                )
            )
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
    for kind, adaptation in KINDS.items():
        runs = _runs(records, adaptation)
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
        series.append(Series(kind, tuple(points)))
    return lines(series, x="step", y="domain loss on half B, nats")


EXPERIMENT = Experiment(
    name="best",
    title="The best checkpoint",
    hypothesis=(
        "With a rate that decays the last checkpoint is the best for the domain; with a constant high rate and with "
        "many epochs over little text it lies inside; dapt's selection finds each without knowing which it is."
    ),
    thresholds=(
        "cosine: the lowest domain loss on half B is at the last of ten checkpoints, for every seed",
        "constant rate (twice the peak), and 40,000 domain tokens read for as many epochs as fit: before the last, for "
        "every seed",
        f"the checkpoint that dapt takes by half A misses at most {LARGEST_REGRET_NATS:g} nats of the best on half B",
    ),
    runs=lambda seeds: over(seeds, list(KINDS.values())),
    judge=judge,
    figure=figure,
    claims=("best.cosine-ends-best", "best.constant-rate-inside", "best.many-epochs-inside", "best.selector"),
)
