"""Makes the tokenizer that documents are counted and stored with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def plain_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json that truncates and pads nothing, and reads special tokens as text.

    A document that spells out end-of-text must not end there.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
