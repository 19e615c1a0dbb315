"""Modules whose tests a marker expression cannot select are left unimported; all others are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.marker_selection import can_select, module_marks

UNIT = "not torch and not distributed and not cluster"
TORCH = "(torch or distributed) and not cluster"


@pytest.mark.parametrize(
    ("text", "selected_by"),
    [
        ("def test(): ...", {UNIT}),
        ("pytestmark = pytest.mark.torch", {TORCH}),
        ("pytestmark = [\n    pytest.mark.torch,\n    pytest.mark.timeout(9),\n    *MORE,\n]", {TORCH}),
        ("@pytest.mark.torch\ndef test(): ...", {UNIT, TORCH}),
        ("class TestGangs:\n    pytestmark = pytest.mark.torch", {UNIT, TORCH}),
        ("gang = [pytest.mark.torch, pytest.mark.distributed]", {UNIT, TORCH}),
        ("pytestmark = pytest.mark.cluster", set()),
        ("pytestmark = pytest.mark.torch\n\n@pytest.mark.cluster\ndef test(): ...", {TORCH}),
        ("pytestmark = pytest.mark.torch if GPU else pytest.mark.cluster", {UNIT, TORCH}),
    ],
)
def test_a_module_is_read_when_some_test_of_it_may_be_selected(
    tmp_path: Path, text: str, selected_by: set[str]
) -> None:
    module = tmp_path / "test_module.py"
    module.write_text(text)
    assert {expression for expression in (UNIT, TORCH) if can_select(expression, module)} == selected_by


def test_a_conftest_may_add_a_marker(tmp_path: Path) -> None:
    module, conftest = tmp_path / "test_module.py", tmp_path / "conftest.py"
    module.write_text("def test(): ...")
    conftest.write_text("item.add_marker(pytest.mark.torch)")
    assert not can_select(TORCH, module)
    assert can_select(TORCH, module, [conftest])
    assert can_select(UNIT, module, [conftest])


def test_only_pytestmark_holds_for_a_whole_module(tmp_path: Path) -> None:
    module = tmp_path / "test_module.py"
    module.write_text("gang = pytest.mark.distributed\npytestmark = [pytest.mark.torch, *gang]")
    assert module_marks(module) == {"torch"}
