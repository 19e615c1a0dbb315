"""Counts the hostile inputs that the tests try, and writes the table of docs/security.md.

Run `python -m support.hostile_summary` in tests/. A case counts once it is collected; that each ends as its row says
is what the tests assert.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- table of hostile_summary.py -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Row:
    """Inputs of one kind."""

    name: str
    files: tuple[str, ...]
    least: int
    outcome: str


ROWS = (
    Row(
        "manifests",
        ("tests/api/test_hostile_manifests.py",),
        120,
        "refused by the API server and by lint alike; harmless look-alikes accepted",
    ),
    Row(
        "attempts on limits and on foreign or copied objects",
        ("tests/scenario/test_attempts_on_limits.py", "tests/scenario/test_foreign_objects.py"),
        40,
        "nothing starts, nothing counts; named in the status",
    ),
    Row(
        "answers and messages of pods",
        ("tests/kubernetes_adapter/test_hostile_pods.py", "tests/scenario/test_hostile_reports.py"),
        40,
        "refused, or bounded and cleaned",
    ),
    Row(
        "model folders",
        (
            "tests/trainer/data/test_hostile_models.py",
            "tests/trainer/training/test_hostile_folders.py",
            "tests/trainer/publishing/test_base_files.py",
            "tests/trainer/modeling/test_hostile_adapters.py",
        ),
        80,
        "one sentence; nothing executed",
    ),
    Row(
        "data files",
        ("tests/trainer/data/test_hostile_files.py",),
        60,
        "a bad file, a bad record, or text; nothing executed; in 1 GiB of memory",
    ),
    Row(
        "checkpoints",
        (
            "tests/trainer/test_hostile_checkpoints.py",
            "tests/trainer/test_broken_states.py",
            "tests/trainer/training/test_fitting_states.py",
        ),
        30,
        "skipped in a sentence; nothing executed; the one before it is used",
    ),
    Row(
        "folders of a work volume",
        ("tests/contract/test_folders.py", "tests/trainer/data/test_slice_board.py"),
        10,
        "removed without following a link, however deep; or one sentence",
    ),
    Row(
        "run folders of others",
        ("tests/report/test_received_folders.py", "tests/local/test_received_run_folder.py"),
        30,
        "one sentence; no traceback, nothing read or written outside",
    ),
    Row(
        "texts of others at the outputs",
        ("tests/cli/test_hostile_texts.py", "tests/scenario/test_hostile_texts.py"),
        30,
        "no control or direction character leaves",
    ),
)


def cases(row: Row) -> int:
    """Return how many tests of these files pytest collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *row.files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return len(re.findall(r"^tests/[\w/]+\.py::", done.stdout, flags=re.MULTILINE))


def table() -> str:
    """Return the table with one row for each kind of input."""
    lines = ["| input | cases | outcome of each |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {row.name} | {cases(row)} | {row.outcome} |" for row in ROWS]) + "\n"


def main() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
