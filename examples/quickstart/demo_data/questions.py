"""What is asked of the model about categories that no training document names.

Each item is ``{"question" or "prompt", "choices", "answer"}``; ``answer`` is the index of the right choice. The right
index is spread evenly, so that a model that always takes the same place scores at chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypedDict

from demo_data.classification import Entry, fraction_of, is_held_away
from demo_data.documents import side_of


class Question(TypedDict):
    question: str
    choices: list[str]
    answer: int


class Probe(TypedDict):
    prompt: str
    choices: list[str]
    answer: int


ENCOUNTERS = (("A", "initial encounter"), ("D", "subsequent encounter"), ("S", "sequela"))

#: Questions about codes of one category at most, so that the items are about many kinds of injury.
CODES_PER_CATEGORY = 4

#: Chapters named "Diseases of the ...", in titles of 31 to 35 characters: scores that weigh a choice by its length
#: are fair to all of them. The diagnoses of the other chapters become probes, which are scored without lengths.
ORGAN_CHAPTERS = ("7", "9", "10", "11", "14")

_OF_A_SIDE = re.compile(r"\b(of|in|on) (right|left) ")


def placed(right: str, wrong: Sequence[str], place: int) -> tuple[list[str], int]:
    """The choices with the right one at ``place`` (modulo their number), and its index."""
    index = place % (len(wrong) + 1)
    return [*wrong[:index], right, *wrong[index:]], index


def lower_first(text: str) -> str:
    """``"Fracture of femur"`` as it stands inside a sentence; abbreviations keep their capitals."""
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def _by_hash(entries: Iterable[Entry], salt: str) -> list[Entry]:
    return sorted(entries, key=lambda entry: fraction_of(entry.code, salt))


def _few_a_category(entries: Iterable[Entry], most: int) -> list[Entry]:
    seen: dict[str, int] = {}
    kept = []
    for entry in entries:
        if seen.setdefault(entry.category, 0) < most:
            seen[entry.category] += 1
            kept.append(entry)
    return kept


def has_encounters(entry: Entry) -> bool:
    """True when the seventh character of its codes is one of A, D and S, among others perhaps."""
    return {letter for letter, _ in ENCOUNTERS} <= set(dict(entry.seventh))


def complete_code(entry: Entry, letter: str) -> str:
    """The complete code that ends with this seventh character."""
    return next(code for code, _ in entry.codes if code.endswith(letter))


def code_questions(entries: Sequence[Entry], most: int = 80) -> list[Question]:
    """Code to description: what the last two characters of a code never seen say about side and encounter.

    The four choices cross two sides with two encounters, so that each character alone leaves two of them.
    """
    titles = {entry.code: entry.description for entry in entries}
    away = _by_hash((entry for entry in entries if is_held_away(entry.code)), "code-question")
    sides = {entry.code: side for entry in away if has_encounters(entry) and (side := side_of(entry))}
    chosen = _few_a_category((entry for entry in away if entry.code in sides), CODES_PER_CATEGORY)[:most]
    items: list[Question] = []
    for number, entry in enumerate(chosen):
        letter, meaning = ENCOUNTERS[number % 3]
        _, other = ENCOUNTERS[(number + 1 + number // 3 % 2) % 3]
        side = sides[entry.code]
        opposite = "left" if side == "right" else "right"
        wrong = [f"{opposite} side, {meaning}", f"{side} side, {other}", f"{opposite} side, {other}"]
        choices, answer = placed(f"{side} side, {meaning}", wrong, number // 3)
        subject = lower_first(titles.get(entry.parent, entry.description))
        question = f"What does the ICD-10-CM code {complete_code(entry, letter)} say about {subject}?"
        items.append({"question": question, "choices": choices, "answer": answer})
    return items


def unnamed_diagnoses(entries: Sequence[Entry], documents: Iterable[str]) -> list[Entry]:
    """The categories held away whose title stands in no document, also not in a note of another category."""
    text = "\n".join(documents).lower()
    away = (entry for entry in entries if is_held_away(entry.code) and "." not in entry.code)
    return _by_hash((entry for entry in away if entry.description.lower() not in text), "chapter-question")


def _chapter_choices(entries: Sequence[Entry], entry: Entry, number: int) -> tuple[list[str], int]:
    """The titles of four chapters, that of the entry among them; the others from those of ``entries``."""
    others = sorted({found.chapter_title for found in entries} - {entry.chapter_title})
    others.sort(key=lambda title: fraction_of(title, entry.code))
    return placed(entry.chapter_title, others[:3], number)


def _of_an_organ_system(entry: Entry) -> bool:
    return entry.chapter in ORGAN_CHAPTERS


def chapter_questions(entries: Sequence[Entry], documents: Iterable[str]) -> list[Question]:
    """Which chapter a diagnosis belongs to that no document names, among the chapters of organ systems."""
    organs = [entry for entry in entries if _of_an_organ_system(entry)]
    items: list[Question] = []
    for number, entry in enumerate(unnamed_diagnoses(organs, documents)):
        choices, answer = _chapter_choices(organs, entry, number)
        diagnosis = lower_first(entry.description)
        question = (
            f"A patient was diagnosed with {diagnosis}. To which chapter of ICD-10-CM does this belong?"
        )
        items.append({"question": question, "choices": choices, "answer": answer})
    return items


def chapter_probes(entries: Sequence[Entry], documents: Iterable[str]) -> list[Probe]:
    """The same as a sentence to complete, about diagnoses of the other chapters, with all chapters as choices."""
    others = [entry for entry in entries if not _of_an_organ_system(entry)]
    probes: list[Probe] = []
    for number, entry in enumerate(unnamed_diagnoses(others, documents)):
        choices, answer = _chapter_choices(entries, entry, number)
        diagnosis = lower_first(entry.description)
        prompt = (
            f"A patient was diagnosed with {diagnosis}. In ICD-10-CM this diagnosis belongs to the chapter"
        )
        probes.append({"prompt": prompt, "choices": choices, "answer": answer})
    return probes


def wording_probes(entries: Sequence[Entry], most: int = 60) -> list[Probe]:
    """The classification's own wording of a diagnosis against two ways of saying the same in everyday English."""
    away = _by_hash((entry for entry in entries if is_held_away(entry.code)), "probe")
    probes: list[Probe] = []
    for entry in away:
        official = entry.description
        found = _OF_A_SIDE.search(official)
        if found is None:
            continue
        with_article = _OF_A_SIDE.sub(r"\1 the \2 ", official)
        without_side = _OF_A_SIDE.sub(r"\1 ", official)
        others = [with_article, f"{without_side} on the {found[2]}"]
        choices, answer = placed(official, others, len(probes))
        probes.append(
            {"prompt": "The patient's diagnosis was recorded as:", "choices": choices, "answer": answer}
        )
        if len(probes) == most:
            break
    return probes
