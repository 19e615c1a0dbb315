"""Evaluation items in training text are found, and hardly anything else; near-copies of held-out text too."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dapt_trainer.data.dedup.contamination import EvaluationItem, contamination_index
from dapt_trainer.data.dedup.held_out_neighbours import SHINGLE_WORDS, HeldOutShingles, sketches
from dapt_trainer.data.text import WordHasher, normalized, text_digest, words
from support.toy_corpus import WORDS, documents


def tasks_found_in(texts: list[str], items: list[EvaluationItem]) -> list[int]:
    """The task found in each text, or -1."""
    index = contamination_index(items)
    hasher = WordHasher()
    split = [words(normalized(text)) for text in texts]
    ngrams = hasher.ngrams(hasher.hashes([word for item in split for word in item]), index.lengths)
    return index.find(ngrams, np.array([len(item) for item in split])).tolist()


def questions(count: int) -> list[EvaluationItem]:
    """Of 5 to 40 words, made of the words of the corpus: near misses abound."""
    chooser = random.Random(5)
    made = []
    for number in range(count):
        text = " ".join(chooser.choice(WORDS) for _ in range(5 + number % 36))
        made.append(EvaluationItem(f"task-{number % 3}", f"What {text}?", chooser.choice(WORDS)))
    return made


def test_a_hundred_planted_items_are_all_found_and_nothing_else() -> None:
    items = questions(100)
    clean = documents(4000, words=120)
    chooser = random.Random(9)
    planted = []
    for number, item in enumerate(items):
        place = chooser.randint(0, 300)
        text = clean[number]
        question = item.question if number % 2 else item.question.upper().replace(" ", "\n ")
        planted.append(f"{text[:place]} -- {question} {text[place:]}")
    assert tasks_found_in(planted, items) == [number % 3 for number in range(100)]
    hits = sum(owner >= 0 for owner in tasks_found_in(clean, items))
    assert hits / len(clean) < 0.001


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("Q: what, is the FUNNY bone? nobody knows", True),  # punctuation and case do not count
        ("so what is the funny bone", True),
        ("what is the funny", False),
        ("what is the funny big bone", False),
    ],
)
def test_a_short_question_is_found_as_a_whole(text: str, is_found: bool) -> None:
    items = [EvaluationItem("t", "What is the funny bone?", "a nerve")]
    assert tasks_found_in([text], items) == [0 if is_found else -1]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("here the capital of France is Paris, they say", True),
        ("The capital of France is Answer: Paris", True),
        ("the capital of France is large", False),  # a statement, not the item
    ],
)
def test_a_short_prompt_counts_only_with_its_answer(text: str, is_found: bool) -> None:
    items = [EvaluationItem("t", "The capital of France is", "Paris", is_prompt=True)]
    assert tasks_found_in([text], items) == [0 if is_found else -1]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("see which of the following is true of bones, and why", False),  # in every exam, and no item
        ("Which of the following is true of bones? They are hard", True),
        ("Which of the following is true of bones?\nA. They are soft\nB. They are hard", True),
        ("which of the following is true of bones: they are soft; they are hard; they sing", True),
    ],
)
def test_a_question_that_points_to_its_choices_counts_only_with_them(text: str, is_found: bool) -> None:
    choices = ("They are soft", "They are hard", "They sing", "None")
    question = "Which of the following is true of bones?"
    items = [EvaluationItem("t", question, "They are hard", choices=choices)]
    assert tasks_found_in([text], items) == [0 if is_found else -1]


def test_any_thirteen_words_of_a_long_question_give_it_away() -> None:
    question = " ".join(f"w{n}" for n in range(30))
    items = [EvaluationItem("t", question, "a")]
    part = " ".join(f"w{n}" for n in range(9, 22))
    less = " ".join(f"w{n}" for n in range(9, 21))
    assert tasks_found_in([f"x {part} y", f"x {less} y"], items) == [0, -1]


def test_an_item_does_not_reach_over_the_end_of_a_document() -> None:
    items = [EvaluationItem("t", "one two three four five six", "a")]
    assert tasks_found_in(["zero one two three", "four five six seven"], items) == [-1, -1]


def test_items_too_short_to_match_are_counted() -> None:
    index = contamination_index([EvaluationItem("t", "Why?", "so"), EvaluationItem("t", "a b c d e f", "g")])
    assert index.too_short == 1


def test_chinese_is_compared_by_characters() -> None:
    items = [EvaluationItem("t", "心脏位于人体的哪个部位?", "胸部")]
    assert tasks_found_in(["请问:心脏位于人体的哪个部位。", "心脏位于人体的胸部"], items) == [0, -1]


@pytest.mark.parametrize("text", ["A  b\tC", "a b c", "Ａ ｂ c\n"])
def test_texts_that_differ_in_case_and_space_are_the_same(text: str) -> None:
    assert text_digest(normalized(text)) == text_digest("a b c")


def sketch(text: str) -> np.ndarray:
    split = words(normalized(text))
    hasher = WordHasher()
    (ngrams,) = hasher.ngrams(hasher.hashes(split), [SHINGLE_WORDS])
    return sketches(ngrams, np.array([len(split)]))[0]


def changed(text: str, every: int) -> str:
    split = text.split()
    return " ".join("other" if n % every == every - 1 else word for n, word in enumerate(split))


@pytest.mark.parametrize("length", [60, 300, 5000])
def test_near_copies_of_held_out_text_are_found_and_others_not(length: int) -> None:
    held_out = documents(20, words=length)
    index = HeldOutShingles(held_out)
    for text in held_out:
        assert index.is_near(sketch(text))
        assert index.is_near(sketch(changed(text, 40)))  # a word in forty: a tenth of the shingles
        assert index.is_near(sketch(text.upper().replace(" ", "\n")))
        assert not index.is_near(sketch(changed(text, 4)))
    assert not any(index.is_near(sketch(text)) for text in documents(200, first=500, words=length))


def test_a_document_that_contains_a_held_out_one_is_a_near_duplicate() -> None:
    held_out = documents(5, words=400)
    index = HeldOutShingles(held_out)
    around = documents(2, first=900, words=3000)
    assert index.is_near(sketch(f"{around[0]} {held_out[3]} {around[1]}"))
    assert not index.is_near(sketch(f"{around[0]} {around[1]}"))


def test_a_short_phrase_is_not_a_near_duplicate() -> None:
    index = HeldOutShingles(["see the notes below for more " + documents(1)[0]])
    assert not index.is_near(sketch("see the notes below for more"))
