"""Training text of the domain: short documents about categories, subcategories and complete codes.

What is asked later is never stated here: categories that are held away (``is_held_away``) get no document, and note
lines that refer to them are dropped. What the documents do say, over and over on *other* codes, is how the
classification works: which chapter a kind of disease is filed in, which character gives the side, which seventh
character gives the encounter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from demo_data.classification import Entry, fraction_of, is_held_away, names_held_away

#: Documents of each kind that a chapter gives at most; the injuries are thousands of alike subcategories.
SUBCATEGORIES_PER_CHAPTER = 25
CODES_PER_CHAPTER = 330
LINES_PER_NOTE = 2
CHILDREN_LISTED = 4

#: The sides that the tabular list names, with the character that it gives them in most subcategories.
SIDE_CHARACTERS = {"right": "1", "left": "2"}

_FILED = (
    "It is filed in chapter {chapter}, {title} ({range}), block {block}.",
    "Chapter {chapter}, {title} ({range}), holds it under {block}.",
    "The diagnosis belongs to the codes {range}, chapter {chapter}: {title}.",
)


def place(entry: Entry) -> str:
    """The sentence that says where an entry stands; one of three wordings, by the entry's code."""
    wording = _FILED[int(fraction_of(entry.code, "wording") * len(_FILED))]
    return wording.format(
        chapter=entry.chapter, title=entry.chapter_title, range=entry.chapter_range, block=entry.block_title
    )


def note_sentences(entry: Entry) -> Iterator[str]:
    """``Heading: line; line.`` for each note, without the lines that refer to what is held away."""
    for heading, lines in entry.notes:
        kept = [line.rstrip(".:") for line in lines if not names_held_away(line)][:LINES_PER_NOTE]
        if kept:
            yield f"{heading}: {'; '.join(kept)}."


def heading_document(entry: Entry) -> str:
    """A category or subcategory: its title, its place, its notes and what it is divided into."""
    kind = "Category" if "." not in entry.code else "Subcategory"
    parts = [f"{kind} {entry.code}: {entry.description}.", place(entry), *note_sentences(entry)]
    if entry.children:
        listed = "; ".join(f"{code} {text}" for code, text in entry.children[:CHILDREN_LISTED])
        parts.append(f"Divided into: {listed}.")
    return " ".join(parts)


def side_of(entry: Entry) -> str | None:
    """``right`` or ``left`` when the description names one side and the last character follows the convention."""
    words = entry.description.lower().replace(",", " ").split()
    sides = [side for side in SIDE_CHARACTERS if side in words]
    return sides[0] if len(sides) == 1 and entry.code[-1] == SIDE_CHARACTERS[sides[0]] else None


def code_document(entry: Entry) -> str:
    """One complete code: its description and what its last characters stand for, in either order.

    A document shows one code alone: in a list the order of the lines would give the encounter away, and nothing
    would be learned about the character.
    """
    meanings = dict(entry.seventh)
    usual = [code for code, _ in entry.codes if code[-1] in "ADS"] or [code for code, _ in entry.codes]
    pool = usual if fraction_of(entry.code, "usual") < 0.75 else [code for code, _ in entry.codes]
    code = pool[int(fraction_of(entry.code, "which") * len(pool))]
    description = dict(entry.codes)[code].replace("\t", " ")
    reading = [f"{code[-1]} stands for {meanings.get(code[-1], description.rsplit(', ', 1)[-1])}"]
    if side := side_of(entry):
        reading.insert(0, f"{entry.code[-1]} stands for the {side} side")
    explained = f"In the code {code}, {' and '.join(reading)}."
    full = f"{code}: {description}."
    order = (explained, full) if fraction_of(entry.code, "explained first") < 0.6 else (full, explained)
    return " ".join(order)


def _first_by_hash(entries: Iterable[Entry], most_per_chapter: int, salt: str) -> Iterator[Entry]:
    by_chapter: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_chapter[entry.chapter].append(entry)
    for group in by_chapter.values():
        yield from sorted(group, key=lambda entry: fraction_of(entry.code, salt))[:most_per_chapter]


def domain_documents(entries: Iterable[Entry]) -> list[str]:
    """All documents of the domain, in an order given by their hash, so that any first part is a fair sample."""
    kept = [entry for entry in entries if not is_held_away(entry.code)]
    categories = [entry for entry in kept if "." not in entry.code]
    divided = [entry for entry in kept if "." in entry.code and entry.children]
    complete = [entry for entry in kept if {"A", "D", "S"} <= set(dict(entry.seventh))]
    documents = [heading_document(entry) for entry in categories]
    documents += map(heading_document, _first_by_hash(divided, SUBCATEGORIES_PER_CHAPTER, "subcategory"))
    documents += map(code_document, _first_by_hash(complete, CODES_PER_CHAPTER, "complete"))
    return sorted(set(documents), key=lambda text: fraction_of(text, "order"))
