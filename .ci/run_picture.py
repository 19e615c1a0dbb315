"""Draws the pictures of a run that the README shows, with the report's own drawing, from a recorded run.

It is the run of `science` that was set up to forget: `science/results/gates.json`, its first seed.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from dapt_operator.api.v1alpha1.spec_evaluation import Gates
from dapt_operator.report.charts import Chart, GateLines
from dapt_operator.report.tradeoff_charts import AttemptPath, CandidatePoint, attempts_chart, tradeoff_chart

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "science" / "results" / "gates.json"
HARD_STOP_LIMITS = 4.0
"""The hard stop is at this multiple of the limit."""


def recorded() -> tuple[dict[str, float], dict[str, Any]]:
    """Return the losses of the base model and the run, as recorded."""
    content = json.loads(RESULTS.read_text())
    run = next(run for run in content["runs"] if "attempts" in run and run["settings"]["seed"] == 1)
    return content["facts"]["base_losses"][run["settings"]["domain"]], run


def rise_nats(base: dict[str, float], reading: dict[str, float], side: str) -> float:
    """Return the mean rise of the loss over both halves of the held-out text of a side."""
    return sum(reading[f"{side}_{half}"] - base[f"{side}_{half}"] for half in "ab") / 2


def charts() -> list[Chart]:
    """Return forgetting over the attempts, and gain against forgetting of every checkpoint."""
    base, run = recorded()
    limit = Gates().max_general_perplexity_increase
    gates = GateLines(max_general_increase=limit, hard_stop=HARD_STOP_LIMITS * limit)
    paths, points = [], []
    for number, attempt in enumerate(run["attempts"], start=1):
        readings = [
            (int(reading["step"]), math.expm1(rise_nats(base, reading, "general")), reading)
            for reading in run["readings_by_attempt"][str(number)]
        ]
        shown = [(step, forgetting) for step, forgetting, _ in readings]
        paths.append(AttemptPath(number, 0, 0.0, shown, attempt["reason"] or "Completed"))
        points += [
            CandidatePoint(
                f"a{number}-s{step}",
                number,
                "checkpoint",
                forgetting,
                -rise_nats(base, reading, "domain"),
                forgetting <= limit,
            )
            for step, forgetting, reading in readings
        ]
    return [attempts_chart(paths, gates), tradeoff_chart(points, chosen=run["chosen"], gates=gates)]


def main() -> int:
    """Write both pictures into docs/."""
    for chart in charts():
        (ROOT / "docs" / f"run-{chart.name}.png").write_bytes(chart.png)
        print(chart.description)
    return 0


if __name__ == "__main__":
    sys.exit(main())
