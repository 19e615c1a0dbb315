"""What is asked: answers in their place, spread evenly, and about nothing that training text names."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from demo_data.answers import finetuning_pairs
from demo_data.classification import Entry, is_held_away, read_entries
from demo_data.documents import domain_documents
from demo_data.facts import general_probes, general_questions
from demo_data.questions import (
    chapter_probes,
    chapter_questions,
    code_questions,
    lower_first,
    placed,
    wording_probes,
)

pytest.importorskip("simple_icd_10_cm")


@pytest.fixture(scope="module")
def entries() -> tuple[Entry, ...]:
    return read_entries()


@pytest.fixture(scope="module")
def domain(entries: tuple[Entry, ...]) -> list[str]:
    return domain_documents(entries)


def test_no_code_is_read_twice(entries: tuple[Entry, ...]) -> None:
    assert len({entry.code for entry in entries}) == len(entries) > 20_000


def test_the_right_choice_goes_where_it_is_placed() -> None:
    assert [placed("right", ["a", "b"], place) for place in range(4)] == [
        (["right", "a", "b"], 0),
        (["a", "right", "b"], 1),
        (["a", "b", "right"], 2),
        (["right", "a", "b"], 0),
    ]


def test_a_title_inside_a_sentence_keeps_its_abbreviations() -> None:
    assert lower_first("Fracture of femur") == "fracture of femur"
    assert lower_first("ST elevation") == "ST elevation"


def test_answers_to_the_questions_appear_in_no_document(
    entries: tuple[Entry, ...], domain: list[str]
) -> None:
    text = "\n".join(domain).lower()
    for item in code_questions(entries):
        code = item["question"].split("code ")[1].split()[0]
        assert is_held_away(code)
        assert code.lower()[:-1] not in text
    for item in chapter_questions(entries, domain):
        assert (
            item["question"].removeprefix("Which range of ICD-10-CM codes covers ")[:-1].lower() not in text
        )
    for probe in wording_probes(entries):
        assert probe["choices"][probe["answer"]].lower() not in text


def test_finetuning_pairs_are_about_other_categories(entries: tuple[Entry, ...], domain: list[str]) -> None:
    asked = {item["question"] for item in (*code_questions(entries), *chapter_questions(entries, domain))}
    pairs = finetuning_pairs(entries)
    assert len(pairs) == 320
    assert not asked & {pair["prompt"] for pair in pairs}
    codes = [pair["prompt"].split("code ")[1].split()[0] for pair in pairs if " code " in pair["prompt"]]
    assert len(codes) == 120
    assert not any(map(is_held_away, codes))


def test_right_answers_are_spread_evenly_over_the_places(
    entries: tuple[Entry, ...], domain: list[str]
) -> None:
    for items in (code_questions(entries), chapter_questions(entries, domain), wording_probes(entries)):
        counts = Counter(item["answer"] for item in items)
        assert len(items) >= 50
        assert max(counts.values()) - min(counts.values()) <= 3


def test_a_diagnosis_is_a_question_or_a_probe(entries: tuple[Entry, ...], domain: list[str]) -> None:
    asked = {item["question"].split(". To ")[0] for item in chapter_questions(entries, domain)}
    probed = {probe["prompt"].split(". In ")[0] for probe in chapter_probes(entries, domain)}
    assert len(asked) >= 50
    assert len(probed) >= 50
    assert not asked & probed


def test_every_item_has_distinct_choices_and_one_answer(
    entries: tuple[Entry, ...], domain: list[str]
) -> None:
    items = [*code_questions(entries), *chapter_questions(entries, domain), *wording_probes(entries)]
    items += [*general_questions(), *general_probes()]
    for item in items:
        assert len(set(item["choices"])) == len(item["choices"])
        assert 0 <= item["answer"] < len(item["choices"])


def test_code_questions_cross_two_sides_with_two_encounters(entries: tuple[Entry, ...]) -> None:
    for item in code_questions(entries):
        sides, encounters = zip(*(choice.split(" side, ") for choice in item["choices"]), strict=True)
        assert Counter(sides) == {"left": 2, "right": 2}
        assert set(Counter(encounters).values()) == {2}
        assert len(set(encounters)) == 2


def test_general_items_are_sixty_questions_and_thirty_probes() -> None:
    assert len(general_questions()) == 60
    assert len(general_probes()) == 30
    assert Counter(item["answer"] for item in general_questions()) == dict.fromkeys(range(4), 15)


def test_the_same_entries_give_the_same_items(entries: tuple[Entry, ...], domain: list[str]) -> None:
    runs = [
        (
            code_questions(found),
            chapter_questions(found, domain),
            wording_probes(found),
            finetuning_pairs(found),
        )
        for found in (entries, entries[::-1])
    ]
    assert all(one == two for one, two in pairwise(runs))
