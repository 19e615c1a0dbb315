"""Questions with answers for supervised finetuning, about entries that the training documents may name.

They teach the manner of answering; what is asked in the evaluation is about other categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from demo_data.classification import Entry, fraction_of, is_held_away
from demo_data.documents import side_of
from demo_data.questions import ENCOUNTERS, complete_code, has_encounters, lower_first


class Pair(TypedDict):
    prompt: str
    response: str


def _asked(entries: Sequence[Entry], salt: str, most: int) -> list[Entry]:
    kept = [entry for entry in entries if not is_held_away(entry.code)]
    return sorted(kept, key=lambda entry: fraction_of(entry.code, salt))[:most]


def code_pairs(entries: Sequence[Entry], most: int) -> list[Pair]:
    """What a complete code says about side and encounter."""
    titles = {entry.code: entry.description for entry in entries}
    usual = [entry for entry in entries if side_of(entry) and has_encounters(entry)]
    pairs: list[Pair] = []
    for number, entry in enumerate(_asked(usual, "code-pair", most)):
        letter, meaning = ENCOUNTERS[number % 3]
        subject = lower_first(titles.get(entry.parent, entry.description))
        pairs.append(
            {
                "prompt": f"What does the ICD-10-CM code {complete_code(entry, letter)} say about {subject}?",
                "response": f"{side_of(entry)} side, {meaning}",
            }
        )
    return pairs


def chapter_pairs(entries: Sequence[Entry], most: int) -> list[Pair]:
    """Which chapter a diagnosis belongs to."""
    categories = [entry for entry in entries if "." not in entry.code]
    return [
        {
            "prompt": f"Which chapter of ICD-10-CM holds {lower_first(entry.description)}?",
            "response": entry.chapter_title,
        }
        for entry in _asked(categories, "chapter-pair", most)
    ]


def finetuning_pairs(entries: Sequence[Entry], codes: int = 120, chapters: int = 200) -> list[Pair]:
    """Pairs about codes and about chapters, in an order given by their hash."""
    pairs = code_pairs(entries, codes) + chapter_pairs(entries, chapters)
    return sorted(pairs, key=lambda pair: fraction_of(pair["prompt"], "order"))
