"""The worked examples are valid on a cluster, and planned with the numbers that their pages give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dapt_operator.cli.commands.lint import lint
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.inputs.manifests import read_request

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "worked").glob("*.yaml"))
PAGES = ROOT / "docs" / "examples"
ROWS = {
    name: row
    for row in (PAGES / "index.md").read_text().splitlines()
    for name in re.findall(r"\(([a-z-]+)\.md\)", row)
    if row.startswith("|")
}


def test_every_example_has_a_page_and_a_row() -> None:
    names = {path.stem for path in EXAMPLES}
    assert len(names) == 5
    assert names == set(ROWS) == {page.stem for page in PAGES.glob("*.md")} - {"index"}
    for name in names:
        assert f"`examples/worked/{name}.yaml`" in (PAGES / f"{name}.md").read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_worked_example_is_planned_with_the_numbers_of_its_row(path: Path) -> None:
    assert lint([path], cluster=True)[0] == []
    page = plan(read_request(path, str(ROOT / "examples" / "profile-h100.yaml")))
    assert page.problems == ()
    text = "\n".join(page.lines)
    (nodes,) = re.findall(r"on profile h100: (\d+) nodes with 8 GPUs each", text)
    (hours,) = re.findall(r"^GPU-hours: ([\d.]+)", text, flags=re.MULTILINE)
    assert f"| {nodes} nodes of 8 GPUs | {float(hours):.0f} |" in ROWS[path.stem]


def test_the_site_lists_every_page() -> None:
    listed = set(re.findall(r"- ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
