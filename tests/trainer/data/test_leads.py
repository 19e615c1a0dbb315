"""The first tokens that nothing predicts in training: the same text for every tokenizer, whole characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from dapt_trainer.data.packing.held_out import HeldOutDocument, read_held_out, write_held_out
from dapt_trainer.data.packing.leads import common_lead, tokens_of_lead, with_lead


@pytest.mark.parametrize(
    ("offsets", "lead"),
    [
        ([[(0, 3), (3, 5), (5, 9)]], (1, 3)),
        # one character of three bytes, each a token
        ([[(0, 1), (0, 1), (0, 1), (1, 4)]], (3, 1)),
        # a beginning without a character, as SentencePiece has it
        ([[(0, 0), (0, 3), (3, 5)]], (1, 0)),
        # white space that a normalizer removed
        ([[(2, 5), (6, 9)]], (1, 5)),
        # an extended tokenizer joins what the base tokenizer has in two tokens
        ([[(0, 3), (3, 5), (5, 9)], [(0, 5), (5, 9)]], (2, 5)),
        ([[(0, 5), (5, 9)], [(0, 3), (3, 5), (5, 9)]], (1, 5)),
    ],
)
def test_a_lead_ends_where_a_character_and_a_token_of_each_tokenizer_end(
    offsets: list[list[tuple[int, int]]], lead: tuple[int, int]
) -> None:
    assert common_lead(offsets) == lead
    assert tokens_of_lead(offsets[0], lead[1]) == lead[0]


def test_a_text_of_one_token_is_a_lead_as_a_whole() -> None:
    document = HeldOutDocument([7], 3, "abc").with_lead(*common_lead([[(0, 3)], [(0, 2), (2, 3)]]))
    assert (document.scored_tokens, document.scored_bytes) == (0, 0)
    assert tokens_of_lead([(0, 2), (2, 3)], document.lead_characters) == 2


def bpe(vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat", "the 漢字 rat"] * 9, trainer)
    return tokenizer


@pytest.mark.parametrize("text", ["the cat sat", "漢字 the rat", "ü", " leading space", "x"])
def test_both_tokenizers_score_the_same_bytes(text: str) -> None:
    base, extended = bpe(258), bpe(290)
    ids = base.encode(text).ids
    document = with_lead(HeldOutDocument(ids, len(text.encode()), text), [base, extended])
    assert 1 <= document.lead_tokens <= len(ids)
    for tokenizer in (base, extended):
        encoding = tokenizer.encode(text)
        lead = tokens_of_lead(encoding.offsets, document.lead_characters)
        scored = "".join(encoding.tokens[lead:])
        # A token of a byte-level tokenizer has a character for each byte.
        assert len(scored) == document.scored_bytes


def test_leads_are_written_with_the_documents_and_read_again(tmp_path: Path) -> None:
    documents = [HeldOutDocument([5, 6], 4, "a\u2028").with_lead(1, 1), HeldOutDocument([7], 1, "b")]
    write_held_out(tmp_path / "held-out", "domain", "a", documents)
    assert read_held_out(tmp_path, "domain", "a") == documents
    assert documents[0].scored_bytes == 3
