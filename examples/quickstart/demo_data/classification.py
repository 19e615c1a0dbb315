"""ICD-10-CM as plain values: what the demo's texts and questions are made of.

The tabular list is in the public domain (CDC/NCHS); the package ``simple-icd-10-cm`` carries it. Only
``read_entries`` touches that package, so that everything else can be tested on a handful of made-up entries.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass

#: Chapters of body systems that a reader can tell apart by the name of a disease, and injuries by body region.
CHAPTERS = ("4", "7", "9", "10", "11", "13", "14", "19")

#: Chapter 19 is as large as all others together: the demo keeps the injuries and leaves poisonings (T) out.
_LEFT_OUT_PREFIXES = ("T",)

_RANGE = re.compile(r"^(?P<title>.*) \((?P<range>[A-Z][0-9A-Z]{2}(?:-[A-Z][0-9A-Z]{2})?)\)$")
_CODE = re.compile(r"\b[A-Z][0-9][0-9A-Z](?:\.[0-9A-Z]+)?")


class MissingPackageError(Exception):
    """A package that the demo's data come from is not installed; the message says what to type."""


@dataclass(frozen=True)
class Entry:
    """One category (``S72``) or subcategory (``S72.01``) with everything that the tabular list says about it.

    ``codes`` are the complete codes that the seventh character makes of it, as (code, description); ``seventh``
    says what each such character means. ``notes`` maps a heading of the tabular list to its lines.
    """

    code: str
    description: str
    chapter: str
    chapter_title: str
    chapter_range: str
    block_title: str
    block_range: str
    parent: str = ""
    children: tuple[tuple[str, str], ...] = ()
    codes: tuple[tuple[str, str], ...] = ()
    seventh: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def category(self) -> str:
        return self.code.split(".")[0]


def split_range(text: str) -> tuple[str, str]:
    """``"Injuries to the neck (S10-S19)"`` as title and range; the range is empty where the text has none."""
    found = _RANGE.match(text)
    return (found["title"], found["range"]) if found else (text, "")


def fraction_of(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the text and the salt alone: the demo's only source of chance."""
    digest = hashlib.sha256(f"{salt}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_held_away(code: str, fraction: float = 0.2) -> bool:
    """True when the whole category of this code stays out of the training text, to be asked about."""
    return fraction_of(code.split(".")[0], "held-away") < fraction


def names_held_away(line: str, fraction: float = 0.2) -> bool:
    """True when a note's line refers to a category that is held away: such a line would give an answer away."""
    return any(is_held_away(code, fraction) for code in _CODE.findall(line))


def read_entries(chapters: tuple[str, ...] = CHAPTERS) -> tuple[Entry, ...]:
    """The categories and subcategories of these chapters, in the order of the tabular list.

    Raises ``MissingPackageError`` when ``simple-icd-10-cm`` is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package warns about empty nodes of the official file
            import simple_icd_10_cm as icd
    except ImportError as error:
        raise MissingPackageError(
            "the package simple-icd-10-cm, which carries the ICD-10-CM text, is not installed: "
            "run `pip install simple-icd-10-cm`"
        ) from error

    headings = (
        ("Includes", icd.get_includes),
        ("Inclusion terms", icd.get_inclusion_term),
        ("Excludes1", icd.get_excludes1),
        ("Excludes2", icd.get_excludes2),
        ("Code first", icd.get_code_first),
        ("Use additional code", icd.get_use_additional_code),
        ("Code also", icd.get_code_also),
        ("Note", icd.get_notes),
    )

    def lines(found: object) -> tuple[str, ...]:
        """The package answers with a list or with one string of several lines."""
        raw = found.splitlines() if isinstance(found, str) else list(found or [])  # type: ignore[call-overload]
        return tuple(line.strip() for line in raw if line.strip())

    entries = []
    for chapter in chapters:
        chapter_title, chapter_range = split_range(icd.get_description(chapter))
        for code in dict.fromkeys(icd.get_descendants(chapter)):  # a block of one category has its name
            if not (icd.is_category(code) or icd.is_subcategory(code)) or icd.is_extended_subcategory(code):
                continue
            if code.startswith(_LEFT_OUT_PREFIXES):
                continue
            block = next((item for item in icd.get_ancestors(code) if icd.is_block(item)), chapter)
            block_title, block_range = split_range(icd.get_description(block))
            below = [(item, icd.get_description(item)) for item in icd.get_children(code)]
            complete = tuple(pair for pair in below if icd.is_extended_subcategory(pair[0]))
            seventh = {}
            if complete:
                endings = {item[-1] for item, _ in complete}
                definitions = icd.get_seven_chr_def(code, search_in_ancestors=True)
                seventh = {k: v.replace("\t", " ") for k, v in definitions.items() if k in endings}
            entries.append(
                Entry(
                    code=code,
                    description=icd.get_description(code),
                    chapter=chapter,
                    chapter_title=chapter_title,
                    chapter_range=chapter_range,
                    block_title=block_title,
                    block_range=block_range,
                    parent=icd.get_parent(code),
                    children=tuple(pair for pair in below if pair not in complete),
                    codes=complete,
                    seventh=tuple(sorted(seventh.items())),
                    notes=tuple((name, lines(read(code))) for name, read in headings if read(code)),
                )
            )
    return tuple(entries)
