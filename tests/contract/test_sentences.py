"""A sentence that is cut ends with a whole word and says so, whatever it holds."""

from __future__ import annotations

import json

import pytest

from dapt_contract.pod.message import MAX_MESSAGE_BYTES, RunEnd, encode_message
from dapt_contract.sentences import shortened, shortened_to_bytes

SENTENCE = "domain[0]: 12 of 13 documents are longer than a sequence or were cut"


@pytest.mark.parametrize("limit", range(8, len(SENTENCE)))
def test_a_cut_sentence_ends_with_a_whole_word(limit: int) -> None:
    cut = shortened(SENTENCE, limit)
    assert len(cut) <= limit
    assert cut.endswith("...")
    kept = cut.removesuffix("...")
    assert SENTENCE.startswith(kept)
    assert not kept.endswith((" ", ":"))
    # What follows is the rest of the punctuation and a space, but where the first word alone is too long.
    assert SENTENCE[len(kept) :].lstrip(":").startswith(" ") or " " not in SENTENCE[: limit - 2]


def test_a_sentence_within_the_limit_stays() -> None:
    assert shortened(SENTENCE, len(SENTENCE)) == SENTENCE


def test_a_word_that_is_longer_than_the_limit_is_cut() -> None:
    assert shortened("/a/path/without/any/space/in/it", 12) == "/a/path/w..."
    assert shortened("nothing fits", 2) == ""


def test_a_cut_leaves_no_punctuation_before_the_mark() -> None:
    assert shortened("first, second; third", 12) == "first..."


@pytest.mark.parametrize("text", ["größer als erlaubt " * 20, "モデル " * 60, "word " * 100, "é" * 300])
@pytest.mark.parametrize("limit", [40, 63, 100])
def test_bytes_are_counted_as_utf_8(text: str, limit: int) -> None:
    cut = shortened_to_bytes(text, limit)
    assert len(cut.encode()) <= limit
    assert cut.endswith("...")
    assert len(cut) > 3
    assert text.startswith(cut.removesuffix("..."))


def test_the_sentence_of_a_termination_message_is_cut_at_a_word() -> None:
    message = "file.jsonl:1: field 'text' is missing; " * 200
    sentence = json.loads(encode_message("k", "prepare", RunEnd(64, message=message)))["message"]
    assert len(sentence) <= 600
    kept = sentence.removesuffix("...")
    assert message.startswith((f"{kept};", f"{kept} "))
    assert len(encode_message("k", "prepare", RunEnd(64, message=message)).encode()) <= MAX_MESSAGE_BYTES
