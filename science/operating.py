"""How often the gate of general tasks lets a model pass, by what it truly lost: the table in docs/evaluation.md.

Items are drawn, the gate itself judges. An item is answered right by both models, by neither, or by one of them: a
share of answers changes in any training, and a loss means that more change to wrong than to right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy

from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates import GateFacts, task_drop
from dapt_operator.plan.gates.verdict import WITHIN_NOISE
from science.experiments.common import Table

BEGINS: Final = "<!-- table of science/operating.py -->\n"
ENDS: Final = "<!-- end of table -->\n"
DRAWS: Final = 1000
"""Adaptations a cell; the standard error of a share is 0.016 at most."""
ITEMS: Final = (200, 500, 1000)
TASKS: Final = (1, 8)
LOSSES_POINTS: Final = (0.0, 3.0, 6.0, 9.0)
"""True losses on one task; the others lose nothing. The limit is 3."""
CHANGED: Final = 0.15
"""Share of the answers that differ between base and candidate, half to each side where nothing is lost."""
BASE_SCORE: Final = 0.6
TRIES: Final = 3
_TEXT: Final = SidePerplexity(
    a=Perplexity(nll_nats=1.0, tokens=1, bytes=1), b=Perplexity(nll_nats=1.0, tokens=1, bytes=1)
)


@dataclass(frozen=True)
class Shares:
    """Shares of all draws in which a model passed."""

    passed: float
    """The gate, as the first candidate."""
    passed_without_doubt: float
    """The gate, as a further try: no loss over the limit is forgiven."""
    passed_with_confidence: float
    """The gate, with `gates.confidence: 0.95`."""

    @property
    def passed_in_tries(self) -> float:
        """Return the share in which one of so many candidates passes that all lost as much, each by itself."""
        return 1.0 - (1.0 - self.passed) * (1.0 - self.passed_without_doubt) ** (TRIES - 1)


def shares(
    items: int, tasks: int, loss_points: float, draws: int = DRAWS, changed: float = CHANGED
) -> Shares:
    """Return how often a model passes that lost so many points on the first of its tasks.

    Args:
        items: of each task.
        tasks: number of general tasks.
        loss_points: true loss.
        draws: adaptations.
        changed: share of answers that differ from the base model's.
    """
    # The same items for every loss of one size, so that a row is smooth.
    random = numpy.random.default_rng([items, tasks])
    base = _measure(Score.model_construct(**_score(number, items, BASE_SCORE)) for number in range(tasks))
    plain, strict = _spec(None), _spec(0.95)
    passed = without_doubt = with_confidence = 0
    for _ in range(draws):
        drawn = [
            _draw(random, items, loss_points / 100 if number == 0 else 0.0, changed)
            for number in range(tasks)
        ]
        measured = _measure(
            Score.model_construct(
                **_score(number, items, BASE_SCORE + difference),
                difference=difference,
                difference_standard_error=error,
            )
            for number, (difference, error) in enumerate(drawn)
        )
        facts = GateFacts("candidate", base, measured)
        verdicts = task_drop.judge(plain, facts)
        is_passed = all(verdict.passed for verdict in verdicts)
        passed += is_passed
        without_doubt += is_passed and not any(verdict.reason == WITHIN_NOISE for verdict in verdicts)
        with_confidence += all(verdict.passed for verdict in task_drop.judge(strict, facts))
    return Shares(passed / draws, without_doubt / draws, with_confidence / draws)


def table(draws: int = DRAWS) -> Table:
    """Return the rows by number of items and tasks."""
    header = ("items a task", "tasks", *(f"loses {loss:g}" for loss in LOSSES_POINTS), "loses 6, three tries",
              "loses 0, `confidence: 0.95`", "loses 6, `confidence: 0.95`")  # fmt: skip
    return Table("", header, tuple(row(items, tasks, draws) for items in ITEMS for tasks in TASKS))


def row(items: int, tasks: int, draws: int = DRAWS) -> tuple[str, ...]:
    """Return the cells of one row; they are the same at each call."""
    by_loss = {loss: shares(items, tasks, loss, draws) for loss in LOSSES_POINTS}
    return (
        f"{items:,}",
        str(tasks),
        *(f"{by_loss[loss].passed:.2f}" for loss in LOSSES_POINTS),
        f"{by_loss[6.0].passed_in_tries:.2f}",
        f"{by_loss[0.0].passed_with_confidence:.2f}",
        f"{by_loss[6.0].passed_with_confidence:.2f}",
    )


def write(page: Path, text: str) -> None:
    """Put the table between its marks in the page.

    Raises:
        ValueError: the page has no such marks.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if not (found and ends):
        raise ValueError(f"{page}: has no line {BEGINS.strip()} with a line {ENDS.strip()} below it")
    page.write_text(before + BEGINS + "\n" + text + "\n" + ENDS + after, encoding="utf-8")


def _spec(confidence: float | None) -> DomainAdaptationSpec:
    gates: dict[str, Any] = {} if confidence is None else {"confidence": confidence}
    return DomainAdaptationSpec.model_validate(
        {
            "model": {"source": "hf://base/model@main"},
            "profile": "any",
            "corpus": {"domain": [{"source": "pvc://claim/d"}], "general": [{"source": "pvc://claim/g"}]},
            "resources": {"nodes": 1, "gpusPerNode": 1},
            "output": {"destination": "pvc://claim/out"},
            "gates": gates,
        }
    )


def _draw(random: numpy.random.Generator, items: int, loss: float, changed: float) -> tuple[float, float]:
    """Return the mean difference of the items' scores and its standard error, as the trainer computes them."""
    lost, won, _ = random.multinomial(items, [(changed + loss) / 2, (changed - loss) / 2, 1.0 - changed])
    difference = float(won - lost) / items
    variance = (float(won + lost) - items * difference**2) / (items - 1)
    return difference, float((variance / items) ** 0.5)


def _score(number: int, items: int, score: float) -> dict[str, Any]:
    return {
        "name": f"task{number}", "side": "general", "kind": "task", "items": items, "score": score,
        "standard_error": 0.0,
    }  # fmt: skip


def _measure(scores: Iterator[Score]) -> Measure:
    return Measure.model_construct(digest="", domain=_TEXT, general=_TEXT, scores=tuple(scores))


def main() -> None:
    """Print the table for another share of changed answers, or with more draws."""
    parser = argparse.ArgumentParser(prog="python -m science.operating", description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--changed", type=float, default=CHANGED)
    options = parser.parse_args()
    for items in ITEMS:
        for tasks in TASKS:
            cells = [
                shares(items, tasks, loss, options.draws, options.changed).passed for loss in LOSSES_POINTS
            ]
            print(items, tasks, *(f"{cell:.3f}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
