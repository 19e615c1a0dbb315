"""Fault campaigns: how many cases a run of the tests takes, which seed chooses them, and where results are recorded.

`make test` takes a sample of each campaign, the same one at each run; `make faults` takes all cases, with a new first
seed, and records what it found in `bench/results/faults/`, from which the table in `docs/faults.md` is written.
DAPT_FAULT_CAMPAIGNS=whole takes all cases in any call of pytest, and DAPT_FAULT_SEED sets the first seed.

`make fault-results` writes the table again from the records, without running anything.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "bench/results/faults"
PAGE: Final = ROOT / "docs/faults.md"
BEGIN: Final = "<!-- results: written by `make faults` -->"
END: Final = "<!-- end of results -->"
IS_WHOLE: Final = os.environ.get("DAPT_FAULT_CAMPAIGNS") == "whole"
MAX_PROBLEM_CHARACTERS: Final = 400
SEED: Final = int(os.environ.get("DAPT_FAULT_SEED", "0")) or (
    random.SystemRandom().randrange(1, 10**6) if IS_WHOLE else 1
)

Case = TypeVar("Case")


def chosen(cases: Sequence[Case], sample: int, whole: int | None = None) -> list[Case]:
    """A sample of so many cases in their order; of the whole campaign so many, or all."""
    count = (len(cases) if whole is None else whole) if IS_WHOLE else sample
    if count >= len(cases):
        return list(cases)
    picked = random.Random(SEED).sample(range(len(cases)), count)
    return [cases[index] for index in sorted(picked)]


@dataclass
class Campaign:
    """Counts the cases of one campaign and collects what went wrong in them.

    Args:
        name: of its record.
        title: of its row in the table.
    """

    name: str
    title: str
    cases: int = 0
    failures: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the record says, for example the kinds of operations that were used."""
    is_whole: bool = IS_WHOLE
    """Whether all cases are tried, so that the result is recorded."""
    seed: int = SEED
    """Chose the cases."""

    def count(self, case: str, problem: str = "") -> None:
        """Count a case; with a problem it has failed."""
        self.cases += 1
        if self.is_whole:
            print(f"{self.name} {self.cases}: {case}: {problem or 'passed'}", flush=True)
        if problem:
            self.failures.append(f"{case}: {problem[:MAX_PROBLEM_CHARACTERS]}")

    def finish(self) -> None:
        """Record a whole campaign; fail with every case that has failed and with what repeats it."""
        if self.is_whole:
            self._record()
        shown = "\n".join(self.failures[:10])
        assert not self.failures, (
            f"{len(self.failures)} of {self.cases} cases failed; repeat them with DAPT_FAULT_SEED={self.seed}"
            f"{' DAPT_FAULT_CAMPAIGNS=whole' if IS_WHOLE else ''}\n{shown}"
        )

    def _record(self) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        record = {
            "title": self.title,
            "date": datetime.now(UTC).date().isoformat(),
            "seed": self.seed,
            "cases": self.cases,
            "failures": self.failures,
            "facts": self.facts,
        }
        (RESULTS / f"{self.name}.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        write_page()


def write_page() -> None:
    """Write the recorded results into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}")


def table() -> str:
    """The recorded results, as the page shows them."""
    rows = ["| campaign | cases | failed | seed | date | what ran |", "| --- | --- | --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        facts = ", ".join(f"{value} {name}" for name, value in record["facts"].items())
        rows.append(
            f"| {record['title']} | {record['cases']} | {len(record['failures'])} | {record['seed']}"
            f" | {record['date']} | {facts} |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    write_page()
