"""The README explains what the charts show: every entry of a legend, with its colour and shape."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dapt_contract.stages.pretrain import CurvePoint
from dapt_operator.report import style
from dapt_operator.report.charts import GateLines, ScoreRow, score_chart
from dapt_operator.report.tradeoff_charts import CandidateKind, CandidatePoint, tradeoff_chart
from dapt_operator.report.training_charts import PerplexityPoint, loss_chart, perplexity_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def legends(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The texts of the legend of each chart that is drawn."""
    drawn: dict[str, list[str]] = {}

    def note(figure: Figure, name: str) -> tuple[str, bytes]:
        drawn[name] = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        return "", b""

    monkeypatch.setattr(style, "save", note)
    return drawn


def explained() -> str:
    section = README.read_text(encoding="utf-8").partition("## What the charts mean")[2].partition("\n## ")[0]
    return " ".join(section.split())


def test_the_readme_explains_every_entry_of_a_legend(legends: dict[str, list[str]]) -> None:
    point = PerplexityPoint("10", 9.0, 9.0)
    gates = GateLines(0.1, 0.1, 0.4)
    perplexity_chart(point, [point, PerplexityPoint("20", 8.0, 9.5)], chosen="20", final=point, gates=gates)
    kinds: tuple[CandidateKind, ...] = ("checkpoint", "average", "interpolation")
    candidates = [CandidatePoint(f"a1-{kind}", 1, kind, 0.01, 0.1, True) for kind in kinds]
    tradeoff_chart(
        [*candidates, CandidatePoint("a1-s9", 1, "checkpoint", 0.02, 0.2, True)], chosen="a1-s9", gates=gates
    )
    score_chart([ScoreRow("task", [(model, 0.5, 0.1) for model in style.MODEL_COLOURS])])
    marked = [
        CurvePoint(step=1, loss_nats=2.0, learning_rate=1e-3, spike=True),
        CurvePoint(step=2, loss_nats=math.nan, learning_rate=1e-3, skipped=True),
    ]
    chart = loss_chart(marked, [(0, 2.0, 2.0)])
    assert chart.description.endswith("; 1 spike; 1 skipped step")
    assert {"spike", "skipped step"} <= set(legends["loss"])
    assert set(legends) == {"perplexity", "trade", "scores", "loss"}
    text = explained()
    for entries in legends.values():
        assert entries
        for entry in entries:
            # `chosen: a1-s9` and `final model (fine-tuned)` name what is in front of the mark.
            words = entry.partition(":")[0].partition(" (")[0]
            assert words in text, words


def test_the_readme_names_the_marks_that_are_drawn() -> None:
    assert (style.CHOSEN, style.MODEL_SHAPES["chosen"]) == ("#0072b2", "s")
    assert (style.FINAL, style.MODEL_SHAPES["final"]) == ("#d55e00", "D")
    text = explained()
    for words in (
        "blue square is the chosen checkpoint",
        "grey point the base model",
        "orange diamond the final model",
    ):
        assert words in text
