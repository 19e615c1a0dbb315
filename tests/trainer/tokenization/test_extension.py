"""A tokenizer that grew: what it saves, what stays as it was, and what cannot grow."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dapt_contract.stages.prepare import TokenizerExtensionConfig
from dapt_trainer.data.plain_tokenizer import plain_tokenizer
from dapt_trainer.errors import InputError
from dapt_trainer.tokenization.extension import GrownTokenizer, grow_tokenizer
from dapt_trainer.tokenization.learn_merges import MergeLimits, learn_merges
from support.toy_tokenizers import (
    DOMAIN,
    LLAMA3,
    SPECIALS,
    TEXTS,
    added_tokens,
    byte_level,
    sentencepiece_bpe,
    unigram,
)

KINDS: dict[str, Callable[[], str]] = {
    "gpt2": byte_level,
    "llama3": lambda: byte_level(pattern=LLAMA3, ignore_merges=True),
    "llama2": sentencepiece_bpe,
    "gemma": lambda: sentencepiece_bpe(metaspace=False),
    "unigram": unigram,
}
WANTED = TokenizerExtensionConfig(vocabulary_size=60, minimum_frequency=20)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def old_json(kind: str) -> str:
    return KINDS[kind]()


@pytest.fixture(scope="module")
def grown(old_json: str) -> GrownTokenizer:
    return grow_tokenizer(old_json, lambda: DOMAIN, WANTED, source="file://m")


plain_tokenizer_of = functools.cache(plain_tokenizer)


def encode(tokenizer_json: str, text: str) -> list[int]:
    return list(plain_tokenizer(tokenizer_json).encode(text, add_special_tokens=False).ids)


def test_decoding_is_lossless_wherever_it_was_before(old_json: str, grown: GrownTokenizer) -> None:
    old, new = plain_tokenizer(old_json), plain_tokenizer(grown.tokenizer_json)
    came_back = 0
    for text in TEXTS:
        before = old.decode(old.encode(text, add_special_tokens=False).ids)
        assert new.decode(new.encode(text, add_special_tokens=False).ids) == before
        came_back += before == text
    assert came_back >= len(TEXTS) - 5  # SentencePiece loses a space at the beginning


def test_text_without_a_new_token_has_the_tokens_it_had(old_json: str, grown: GrownTokenizer) -> None:
    same = 0
    for text in (part for whole in TEXTS for part in (whole, *whole.split())):
        before, after = encode(old_json, text), encode(grown.tokenizer_json, text)
        if not set(after) & set(grown.constituents):
            assert after == before
            same += 1
        else:
            assert len(after) < len(before)
    assert same > 40


@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("thromboisen ▁Ġ\n0123≥"))))
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_any_text_is_spelled_as_before(old_json: str, grown: GrownTokenizer, text: str) -> None:
    old, new = plain_tokenizer_of(old_json), plain_tokenizer_of(grown.tokenizer_json)
    before = old.encode(text, add_special_tokens=False).ids
    after = new.encode(text, add_special_tokens=False).ids
    assert new.decode(after) == old.decode(before)
    assert [part for number in after for part in grown.constituents.get(number, (number,))] == before


def test_new_token_expands_to_its_constituents(old_json: str, grown: GrownTokenizer) -> None:
    for text in (*TEXTS, *DOMAIN[:5]):
        spelled = [
            part
            for number in encode(grown.tokenizer_json, text)
            for part in grown.constituents.get(number, (number,))
        ]
        assert spelled == encode(old_json, text)


def test_the_tokens_that_are_promised_are_saved(old_json: str, grown: GrownTokenizer) -> None:
    saved = sum(len(encode(old_json, text)) - len(encode(grown.tokenizer_json, text)) for text in DOMAIN)
    assert saved == sum(token.saved_tokens for token in grown.tokens)
    assert saved / sum(len(encode(old_json, text)) for text in DOMAIN) > 0.3


def test_new_ids_follow_the_old_ones_and_no_old_one_changes(old_json: str, grown: GrownTokenizer) -> None:
    old, new = plain_tokenizer(old_json), plain_tokenizer(grown.tokenizer_json)
    before, after = old.get_vocab(with_added_tokens=True), new.get_vocab(with_added_tokens=True)
    first = max(before.values()) + 1
    assert [token.id for token in grown.tokens] == list(range(first, first + 60))
    assert after == before | {token.text: token.id for token in grown.tokens}
    assert added_tokens(grown.tokenizer_json) == added_tokens(old_json)
    old_content, new_content = json.loads(old_json), json.loads(grown.tokenizer_json)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        assert new_content[part] == old_content[part]


def test_old_merges_keep_their_ranks(kind: str, old_json: str, grown: GrownTokenizer) -> None:
    if kind == "unigram":
        old_pieces = json.loads(old_json)["model"]["vocab"]
        assert json.loads(grown.tokenizer_json)["model"]["vocab"][: len(old_pieces)] == old_pieces
        return
    old_merges = json.loads(old_json)["model"]["merges"]
    assert json.loads(grown.tokenizer_json)["model"]["merges"][: len(old_merges)] == old_merges


def test_a_new_token_begins_a_word_where_words_begin(kind: str, grown: GrownTokenizer) -> None:
    begin = "Ġ" if kind in ("gpt2", "llama3") else "▁"
    starts = [token.text for token in grown.tokens if token.text.startswith(begin)]
    assert f"{begin}thrombosis" in starts
    assert len(starts) >= 10


def test_no_new_token_crosses_a_boundary_of_words(kind: str, grown: GrownTokenizer) -> None:
    pre_tokenizer = plain_tokenizer(grown.tokenizer_json).pre_tokenizer
    for token in grown.tokens:
        if kind in ("gpt2", "llama3"):
            text = plain_tokenizer(grown.tokenizer_json).decode([token.id])
            if "\ufffd" not in text:  # part of a character
                assert len(pre_tokenizer.pre_tokenize_str(text)) == 1, token.text
        else:
            assert "▁" not in token.text.lstrip("▁")
            assert not any(character.isdigit() for character in token.text)


def test_characters_that_were_spelled_in_bytes_become_tokens() -> None:
    grown = grow_tokenizer(sentencepiece_bpe(), lambda: DOMAIN, WANTED, source="file://m")
    byte_ids = {f"<0x{byte:02X}>": None for byte in "≥".encode()}
    vocabulary = plain_tokenizer(sentencepiece_bpe()).get_vocab()
    (token,) = [token for token in grown.tokens if token.text == "≥"]
    assert token.constituents == tuple(vocabulary[name] for name in byte_ids)
    assert token.saved_tokens == 2 * 30
    assert not any("<0x" in token.text for token in grown.tokens)


def test_digits_stay_alone_where_no_old_token_joins_them() -> None:
    texts = [f"stage {number} of 2024, {number:04d} units" for number in range(100, 200)]
    split = json.loads(byte_level())
    split["model"]["merges"] = [
        pair
        for pair in split["model"]["merges"]
        if not any(letter.isdigit() for part in pair for letter in part)
    ]
    joined = {text for text in split["model"]["vocab"] if len(text) > 1 and any(map(str.isdigit, text))}
    assert joined, "the toy joins digits"
    for text in joined:  # as if the tokenizer had been trained on single digits
        split["model"]["vocab"][text.translate(str.maketrans("0123456789", "abcdefghij")) + "@"] = split[
            "model"
        ]["vocab"].pop(text)
    alone = grow_tokenizer(json.dumps(split), lambda: texts, WANTED, source="m").tokens
    assert alone
    assert not any(letter.isdigit() for token in alone for letter in token.text)
    free = grow_tokenizer(byte_level(), lambda: texts, WANTED, source="m").tokens
    assert any(letter.isdigit() for token in free for letter in token.text)


def test_a_special_token_that_a_text_spells_is_text_and_its_id_is_kept() -> None:
    grown = grow_tokenizer(byte_level(), lambda: DOMAIN, WANTED, source="file://m")
    new = plain_tokenizer(grown.tokenizer_json)
    ids = {text: new.token_to_id(text) for text in SPECIALS}
    assert ids == {text: plain_tokenizer(byte_level()).token_to_id(text) for text in SPECIALS}
    assert not set(ids.values()) & set(new.encode("a <|end|> b", add_special_tokens=False).ids)
    new.encode_special_tokens = False
    assert ids["<|end|>"] in new.encode("a <|end|> b", add_special_tokens=False).ids


def test_what_saves_most_is_taken_and_not_what_is_frequent() -> None:
    # `x` is the most frequent word of all and one token already; (1, 2) occurs in 9 words, (3, 4) in 5.
    words = Counter({(9,): 1000, (1, 2): 4, (1, 2, 5): 5, (3, 4): 5, (6, 7): 2})
    texts = {1: "a", 2: "b", 3: "c", 4: "d", 5: "e", 6: "f", 7: "g", 9: "x"}
    vocabulary = {text: number for number, text in texts.items()}
    learned = learn_merges(words, vocabulary, MergeLimits(max_tokens=9, minimum_frequency=3))
    assert [(token.text, token.id, token.saved_tokens) for token in learned.tokens] == [
        ("ab", 10, 9),
        ("cd", 11, 5),
        ("abe", 12, 5),
    ]
    assert learned.merges == [(1, 2), (3, 4), (10, 5)]
    assert learned.tokens[2].constituents == (1, 2, 5)


def test_a_text_that_is_a_token_already_is_not_made_again() -> None:
    vocabulary = {"a": 1, "b": 2, "c": 3, "ab": 4}
    learned = learn_merges({(1, 2): 50, (1, 3): 40}, vocabulary, MergeLimits(5, minimum_frequency=1))
    assert [token.text for token in learned.tokens] == ["ac"]


def test_three_equal_tokens_are_one_pair() -> None:
    learned = learn_merges({(1, 1, 1): 10}, {"-": 1}, MergeLimits(1, minimum_frequency=1))
    assert [(token.text, token.saved_tokens) for token in learned.tokens] == [("--", 10)]


def test_neither_size_nor_frequency_is_passed() -> None:
    few = TokenizerExtensionConfig(vocabulary_size=7, minimum_frequency=20)
    assert len(grow_tokenizer(byte_level(), lambda: DOMAIN, few, source="m").tokens) == 7
    rare = TokenizerExtensionConfig(vocabulary_size=1000, minimum_frequency=60)
    tokens = grow_tokenizer(byte_level(), lambda: DOMAIN, rare, source="m").tokens
    assert min(token.saved_tokens for token in tokens) == 60
    none = TokenizerExtensionConfig(vocabulary_size=1000, minimum_frequency=100_000)
    assert grow_tokenizer(byte_level(), lambda: DOMAIN, none, source="m").tokens == ()


def changed(tokenizer_json: str, **model: object) -> str:
    content = json.loads(tokenizer_json)
    return json.dumps(content | {"model": content["model"] | model})


@pytest.mark.parametrize(
    ("tokenizer_json", "reason"),
    [
        (
            lambda: json.dumps({"model": {"type": "WordPiece"}}),
            "is of kind WordPiece, which has neither merges nor scored pieces that could be appended to",
        ),
        (
            lambda: changed(byte_level(), end_of_word_suffix="</w>"),
            "marks the inside or the end of words in its tokens, which appended merges cannot keep",
        ),
        (
            lambda: unigram(behind=True),
            "has added tokens behind its pieces (<sep>), whose ids appended pieces would take",
        ),
    ],
)
def test_what_cannot_grow_is_refused_with_the_reason(tokenizer_json: Callable[[], str], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        grow_tokenizer(tokenizer_json(), lambda: DOMAIN, WANTED, source="file://m")
    assert str(caught.value) == (
        f"spec.model.tokenizer.extend: the tokenizer of file://m {reason}; remove the field"
    )
