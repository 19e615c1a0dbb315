"""The chances of passing in docs/evaluation.md are those of the gate, and as good as it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from science import operating

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.parametrize(("items", "tasks"), [(500, 8), (1000, 8)])
def test_a_row_of_the_table_is_what_the_gate_does(items: int, tasks: int) -> None:
    cells = operating.row(items, tasks)
    line = "| " + " | ".join(cells) + " |"
    assert line in PAGE.read_text(encoding="utf-8"), "run: python -m science gates"
    passes_harmless, passes_twice_the_limit = float(cells[2]), float(cells[4])
    assert passes_harmless >= 0.93
    assert passes_twice_the_limit <= {500: 0.20, 1000: 0.05}[items]


def test_the_table_is_put_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "evaluation.md"
    page.write_text(f"before\n{operating.BEGINS}old\n{operating.ENDS}after\n", encoding="utf-8")
    operating.write(page, "| new |\n")
    operating.write(page, "| new |\n")
    assert page.read_text(encoding="utf-8") == (
        f"before\n{operating.BEGINS}\n| new |\n\n{operating.ENDS}after\n"
    )
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has no line"):
        operating.write(page, "")
