"""Names of the tasks that lm-evaluation-harness ships, so that a wrong one is refused before anything runs.

`python -m dapt_trainer.data.harness.task_names` writes `harness_tasks.txt.gz` from the installed harness; a test fails
when it is stale. Names longer than a manifest allows are left out.
"""

from __future__ import annotations

import difflib
import gzip
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

NAMES_FILE = "harness_tasks.txt.gz"
LONGEST_NAME = 40
"""Characters; as in a manifest."""

_MEDICINE = ("medqa_4options", "medmcqa", "pubmedqa", "multimedqa")
_LAW = ("legalbench", "mmlu_professional_law", "mmlu_jurisprudence", "law_stack_exchange")
_FINANCE = ("mmlu_professional_accounting", "mmlu_econometrics", "mmlu_business_ethics", "financial_tweets")
NEAR: dict[str, tuple[str, ...]] = {
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
"""What those who write these names are looking for: the spelling alone would not find it."""
_SHOWN = 4


@dataclass(frozen=True)
class HarnessTasks:
    """What one release of the harness has."""

    version: str
    names: tuple[str, ...]
    """Sorted: tasks, groups and tags."""

    def pack(self) -> bytes:
        """The content of `NAMES_FILE`; equal names, equal bytes."""
        names = sorted(name for name in self.names if len(name) <= LONGEST_NAME)
        return gzip.compress("\n".join((self.version, *names)).encode(), 9, mtime=0)


@cache
def listed() -> HarnessTasks:
    """The release that the list was made from."""
    packed = files("dapt_contract").joinpath(NAMES_FILE).read_bytes()
    version, *names = gzip.decompress(packed).decode().split()
    return HarnessTasks(version, tuple(names))


def refusal(name: str, known: HarnessTasks | None = None) -> str | None:
    """What to write instead of a task's name, when the harness has no such task.

    Args:
        name: as the user wrote it.
        known: the harness that will run; the list's when left out.
    """
    release = known or listed()
    names = release.names
    if name in names:
        return None
    wanted = name.lower().replace("-", "_")
    near = [item for item in NEAR.get(wanted, ()) if item in names]
    near += [item for item in difflib.get_close_matches(wanted, names, n=_SHOWN) if item not in near]
    hint = f"; near: {', '.join(near[:_SHOWN])}" if near else ""
    return (
        f"lm-evaluation-harness {release.version} has no task {name!r}{hint}; write one of its names, or give the"
        " task a source of your own"
    )
