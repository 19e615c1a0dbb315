"""Prints how many hostile inputs the tests try, as the table of docs/security-inputs.md.

Run `python -m support.hostile_summary` in tests/.
"""

from __future__ import annotations

from collections import Counter

from support.hostile_files import FILES
from support.hostile_models import ACCEPTED, MODELS

NAMES = {
    "corpus": "files of a corpus",
    "records": "files of records",
    "task": "evaluation tasks",
    "probe": "probe sets",
    "examples": "instructions",
    "pairs": "preferences",
}


def table() -> str:
    """Return the table with one row for each kind of input."""
    models = Counter("accepted" if sentence == ACCEPTED else "refused" for _, sentence in MODELS.values())
    rows = [
        (
            "base models",
            len(MODELS),
            f"{models['refused']} refused, {models['accepted']} harmless and accepted",
        )
    ]
    readers = Counter(reader for reader, *_ in FILES.values())
    rows += [(NAMES[reader], count, "a bad file, a bad record, or text") for reader, count in readers.items()]
    lines = ["| input | cases | outcome |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {name} | {count} | {outcome} |" for name, count, outcome in rows])


if __name__ == "__main__":
    print(table())
