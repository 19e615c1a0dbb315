"""Finds the lead of a held-out document: its first tokens, which nothing predicts in training, so none are scored.

Where documents do not see each other and the tokenizer has no token that begins a text, a segment of packed text starts
with the first token of its document. That token has no label, and everything after it is conditioned on it, so a
measurement does the same. A lead ends where a character ends, so that its bytes can be counted; for two tokenizers it
ends where a token of both ends, so that both score the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dapt_trainer.data.packing.held_out import HeldOutDocument

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Offsets = Sequence[tuple[int, int]]
"""First character of each token of a text, and the one behind it."""


def with_lead(document: HeldOutDocument, tokenizers: Sequence[Tokenizer]) -> HeldOutDocument:
    """Return a document with its lead.

    Args:
        document: in the tokens of the first tokenizer.
        tokenizers: all that the text is scored in; empty where every token is scored.
    """
    if not tokenizers:
        return document
    offsets = [tokenizer.encode(document.text, add_special_tokens=False).offsets for tokenizer in tokenizers]
    tokens, characters = common_lead(offsets)
    return document.with_lead(tokens, characters)


def common_lead(offsets: Sequence[Offsets]) -> tuple[int, int]:
    """Return the tokens of the first tokenizer, and the characters, of the shortest lead that all tokenizers share.

    Args:
        offsets: of the tokens of one text, for each tokenizer.
    """
    shared = set.intersection(*({characters for _, characters in _ends(own)} for own in offsets))
    return next((tokens, characters) for tokens, characters in _ends(offsets[0]) if characters in shared)


def tokens_of_lead(offsets: Offsets, characters: int) -> int:
    """Return how many tokens a lead of this number of characters has in one tokenizer."""
    return next(tokens for tokens, end in _ends(offsets) if end == characters)


def _ends(offsets: Offsets) -> Iterator[tuple[int, int]]:
    """Yield (tokens, characters) of each place after a token at which no character is cut; the text's end is one."""
    for tokens in range(1, len(offsets)):
        end = offsets[tokens - 1][1]
        # The tokens of one character all have its offsets.
        if offsets[tokens][0] >= end:
            yield tokens, end
    # A tokenizer may leave out characters at the end of a text: all of them end at the same place.
    yield len(offsets), _END_OF_TEXT


_END_OF_TEXT = 1 << 62
