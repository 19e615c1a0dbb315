"""Lists the tasks that lm-evaluation-harness ships, so that a wrong name is refused before anything runs.

`python -m dapt_trainer.data.harness.task_names` writes `harness_tasks.txt.gz` from the installed harness; a test fails
when the file is stale. Names longer than a manifest allows are left out.
"""

from __future__ import annotations

import difflib
import gzip
import pkgutil
from dataclasses import dataclass
from functools import cache

NAMES_FILE = "harness_tasks.txt.gz"
MAX_NAME_CHARACTERS = 40
"""The limit that a manifest sets for a task's name."""

_MEDICINE = ("medqa_4options", "medmcqa", "pubmedqa", "multimedqa")
_LAW = ("legalbench", "mmlu_professional_law", "mmlu_jurisprudence", "law_stack_exchange")
_FINANCE = ("mmlu_professional_accounting", "mmlu_econometrics", "mmlu_business_ethics", "financial_tweets")
RELATED_TASKS: dict[str, tuple[str, ...]] = {
    "arc": ("arc_challenge", "arc_easy", "ai2_arc"),
    "bioasq": _MEDICINE,
    "careqa": _MEDICINE,
    "casehold": _LAW,
    "contractnli": ("legalbench_contract_nli", "legalbench"),
    "convfinqa": _FINANCE,
    "cuad": ("legalbench_contract_nli", "legalbench"),
    "finance_qa": _FINANCE,
    "financebench": _FINANCE,
    "financeqa": _FINANCE,
    "finqa": _FINANCE,
    "fiqa": _FINANCE,
    "flare": _FINANCE,
    "fpb": _FINANCE,
    "lawbench": _LAW,
    "legal_bench": _LAW,
    "lexglue": _LAW,
    "medqa": _MEDICINE,
    "medqa_usmle": _MEDICINE,
    "phrasebank": _FINANCE,
    "pubmed_qa": ("pubmedqa", "medqa_4options", "medmcqa"),
    "tatqa": _FINANCE,
    "usmle": _MEDICINE,
}
"""Tasks to suggest for names that the harness does not have and that no similar spelling leads to."""
_MAX_SUGGESTIONS = 4


@dataclass(frozen=True)
class HarnessTasks:
    """Holds the names that one release of the harness knows."""

    version: str
    names: tuple[str, ...]
    """Tasks, groups and tags, sorted."""

    def pack(self) -> bytes:
        """Return the content of `NAMES_FILE`; equal names give equal bytes."""
        names = sorted(name for name in self.names if len(name) <= MAX_NAME_CHARACTERS)
        # gzip stores the time by default, which would change the file with every run.
        return gzip.compress("\n".join((self.version, *names)).encode(), 9, mtime=0)


@cache
def shipped_tasks() -> HarnessTasks:
    """Return the names in `NAMES_FILE`, with the release that they come from."""
    packed = pkgutil.get_data("dapt_contract", NAMES_FILE) or b""
    version, *names = gzip.decompress(packed).decode().split()
    return HarnessTasks(version, tuple(names))


def unknown_task_message(name: str, tasks: HarnessTasks | None = None) -> str | None:
    """Return the message for a task that the harness does not have, with suggestions; None when it has the task.

    Args:
        name: as the user wrote it.
        tasks: names that the installed harness knows; None: `shipped_tasks()`.
    """
    tasks = tasks or shipped_tasks()
    if name in tasks.names:
        return None
    spelling = name.lower().replace("-", "_")
    suggestions = [task for task in RELATED_TASKS.get(spelling, ()) if task in tasks.names]
    similar = difflib.get_close_matches(spelling, tasks.names, n=_MAX_SUGGESTIONS)
    suggestions += [task for task in similar if task not in suggestions]
    hint = f"; near: {', '.join(suggestions[:_MAX_SUGGESTIONS])}" if suggestions else ""
    return (
        f"lm-evaluation-harness {tasks.version} has no task {name!r}{hint}; write one of its names, or give the"
        " task a source of your own"
    )
