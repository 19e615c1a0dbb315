"""Tests the training text: what it contains, and what it must not contain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from demo_data import classification, documents
from demo_data.classification import Entry, is_held_away, names_held_away, split_range

FEMUR = Entry(
    code="S72.012",
    description="Made-up fracture of left femur",
    chapter="19",
    chapter_title="Injuries",
    chapter_range="S00-T88",
    block_title="Injuries to the thigh",
    block_range="S70-S79",
    parent="S72.01",
    codes=(
        ("S72.012A", "Made-up fracture of left femur, initial encounter"),
        ("S72.012D", "Made-up fracture of left femur, subsequent encounter"),
        ("S72.012S", "Made-up fracture of left femur, sequela"),
    ),
    seventh=(("A", "initial encounter"), ("D", "subsequent encounter"), ("S", "sequela")),
)
GOUT = Entry(
    code="M10",
    description="Gout",
    chapter="13",
    chapter_title="Diseases of the joints",
    chapter_range="M00-M99",
    block_title="Arthritis",
    block_range="M05-M14",
    children=(("M10.0", "Idiopathic gout"), ("M10.1", "Lead-induced gout")),
    notes=(("Includes", ("acute gout", "podagra", "a third line")), ("Excludes2", ("chronic gout (M1A.-)",))),
)


def held_away_is(monkeypatch: pytest.MonkeyPatch, *categories: str) -> None:
    """Let exactly these categories be held away."""

    def held(code: str, fraction: float = 0.2) -> bool:
        return code.split(".")[0] in categories

    monkeypatch.setattr(classification, "is_held_away", held)
    monkeypatch.setattr(documents, "is_held_away", held)


def test_a_heading_is_split_into_title_and_range() -> None:
    assert split_range("Injuries to the neck (S10-S19)") == ("Injuries to the neck", "S10-S19")
    assert split_range("Complications (of care) (O9A)") == ("Complications (of care)", "O9A")
    assert split_range("Gout") == ("Gout", "")


def test_a_whole_category_is_held_away_or_none_of_it() -> None:
    assert {is_held_away(f"S72.{tail}") for tail in ("0", "011", "012A")} == {is_held_away("S72")}
    share = (
        sum(is_held_away(f"{letter}{number:02}") for letter in "ABCDEFGHIJ" for number in range(100)) / 1000
    )
    assert share == pytest.approx(0.2, abs=0.03)


def test_a_category_document_gives_title_place_notes_and_divisions(monkeypatch: pytest.MonkeyPatch) -> None:
    held_away_is(monkeypatch)
    assert documents.heading_document(GOUT) == (
        f"Category M10: Gout. {documents.place(GOUT)} Includes: acute gout; podagra. "
        "Excludes2: chronic gout (M1A.-). Divided into: M10.0 Idiopathic gout; M10.1 Lead-induced gout."
    )
    assert "M00-M99" in documents.place(GOUT)
    assert "Diseases of the joints" in documents.place(GOUT)


def test_a_note_that_names_a_held_away_category_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    held_away_is(monkeypatch, "M1A")
    assert names_held_away("chronic gout (M1A.-)")
    assert not names_held_away("gout (M10.-)")
    assert "Excludes2" not in documents.heading_document(GOUT)


def test_a_code_document_shows_one_code_and_reads_its_last_characters() -> None:
    text = documents.code_document(FEMUR)
    shown = {code for code, _ in FEMUR.codes if code in text}
    assert len(shown) == 1
    letter = shown.pop()[-1]
    assert f"2 stands for the left side and {letter} stands for {dict(FEMUR.seventh)[letter]}." in text


@pytest.mark.parametrize(
    ("code", "description", "side"),
    [
        ("S72.011", "Fracture of right femur", "right"),
        ("S72.012", "Fracture, left femur", "left"),
        ("S72.014", "Fracture of left femur", None),  # an exception to the convention
        ("S72.011", "Fracture of right and left femur", None),
        ("S72.019", "Fracture of femur", None),
    ],
)
def test_a_side_is_read_only_where_the_convention_holds(
    code: str, description: str, side: str | None
) -> None:
    assert documents.side_of(replace(FEMUR, code=code, description=description)) == side


def test_held_away_categories_have_no_document(monkeypatch: pytest.MonkeyPatch) -> None:
    held_away_is(monkeypatch, "S72")
    made = documents.domain_documents([FEMUR, GOUT])
    assert made == [documents.heading_document(GOUT)]


def test_the_order_does_not_depend_on_the_order_of_the_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    held_away_is(monkeypatch)
    entries = [replace(GOUT, code=f"M{number}") for number in range(10, 30)]
    assert documents.domain_documents(entries) == documents.domain_documents(entries[::-1])
