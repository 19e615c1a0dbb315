"""General knowledge for the forgetting side: everyday facts and grammar, written for this demo.

They are easy on purpose: a small base model answers most of them, so that a model that forgets can be seen to.
"""

from __future__ import annotations

from demo_data.classification import fraction_of
from demo_data.questions import Probe, Question, placed

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Portugal": "Lisbon", "Austria": "Vienna",
    "Sweden": "Stockholm", "Norway": "Oslo", "Poland": "Warsaw", "Hungary": "Budapest", "Cuba": "Havana",
    "Peru": "Lima", "Kenya": "Nairobi", "Ireland": "Dublin", "Thailand": "Bangkok",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "early": "late", "full": "empty", "heavy": "light", "open": "closed", "wet": "dry",
    "strong": "weak", "rich": "poor", "young": "old", "near": "far", "loud": "quiet", "true": "false",
    "deep": "shallow",
    "hard": "soft", "thick": "thin", "cheap": "expensive", "ancient": "modern", "bright": "dark", "safe": "dangerous",
}  # fmt: skip

KINDS = {
    "robin": "bird", "salmon": "fish", "oak": "tree", "rose": "flower", "violin": "musical instrument",
    "carrot": "vegetable", "banana": "fruit", "hammer": "tool", "sofa": "piece of furniture", "copper": "metal",
    "beagle": "dog", "chess": "game", "rain": "kind of weather", "triangle": "shape", "shirt": "piece of clothing",
    "ant": "insect", "February": "month", "Tuesday": "day of the week", "French": "language", "Mars": "planet",
}  # fmt: skip

#: A sentence's beginning, the word that fits and the one that does not.
GRAMMAR = (
    ("The keys to the cabinet", "are", "is"), ("The boy who lost his shoes", "is", "are"),
    ("Neither of the answers", "was", "were"), ("She has already", "gone", "went"),
    ("Yesterday we", "walked", "walk"), ("He is taller", "than", "then"), ("I would like", "to", "too"),
    ("There were many", "children", "child"), ("This is the best", "book", "books"),
    ("They enjoyed", "themselves", "himself"),
    ("If I had known, I would have", "come", "came"), ("The dogs in the yard", "were", "was"),
    ("She can", "sing", "sings"), ("He depends", "on", "at"), ("We are interested", "in", "of"),
    ("The news", "is", "are"), ("An apple a day", "keeps", "keep"), ("My sister and I", "are", "am"),
    ("He did it by", "himself", "themselves"), ("One of my friends", "lives", "live"),
    ("She is good", "at", "on"), ("They have", "been", "be"), ("The child was", "afraid", "fear"),
    ("It is made", "of", "on"), ("He drove", "slowly", "slow"), ("Two", "mice", "mouse"),
    ("The man with the dogs", "was", "were"), ("We have lived here", "since", "for"),
    ("I am looking forward", "to", "for"), ("Every student", "has", "have"),
)  # fmt: skip


def _choices(table: dict[str, str], key: str, number: int) -> tuple[list[str], int]:
    others = sorted(
        {value for value in table.values() if value != table[key]}, key=lambda v: fraction_of(v, key)
    )
    return placed(table[key], others[:3], number)


def general_questions() -> list[Question]:
    """Sixty questions with four choices each: capitals, opposites and kinds of things."""
    items: list[Question] = []
    for table, wording in (
        (CAPITALS, "What is the capital of {}?"),
        (OPPOSITES, "What is the opposite of {}?"),
        (KINDS, "What is {} an example of?"),
    ):
        for number, key in enumerate(table):
            choices, answer = _choices(table, key, number)
            items.append({"question": wording.format(key), "choices": choices, "answer": answer})
    return items


def general_probes() -> list[Probe]:
    """Thirty beginnings of English sentences with the word that fits and one that does not."""
    probes: list[Probe] = []
    for number, (beginning, right, wrong) in enumerate(GRAMMAR):
        choices, answer = placed(right, [wrong], number)
        probes.append({"prompt": beginning, "choices": choices, "answer": answer})
    return probes
