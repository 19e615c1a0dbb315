"""The pictures of the README: drawn from the recorded run, and stored as they are drawn but for their pixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pictures_show_the_recorded_run() -> None:
    spec = importlib.util.spec_from_file_location("run_picture", ROOT / ".ci" / "run_picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    attempts, trade = module.charts()
    said = [" ".join(chart.description.split()) for chart in (attempts, trade)]
    assert "attempt 2 from step 0: +35.4 % at step 30, +40.0 % at step 60; ended by stopped" in said[0]
    assert "a3-s300: forgetting +6.8 %, gain 0.569" in said[1]
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    for chart in (attempts, trade):
        stored = ROOT / "docs" / f"run-{chart.name}.png"
        assert stored.read_bytes()[:8] == chart.png[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"docs/{stored.name}" in first_screen
