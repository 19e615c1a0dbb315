"""Learns new vocabulary and writes it into a tokenizer's own file, after everything that is there.

Byte-pair tokenizers, byte-level (GPT-2, Llama 3, Qwen) and SentencePiece's (Llama 2, Mistral, Gemma), get new tokens
and the merges that make them, ranked after all old merges. Unigram tokenizers get new pieces with scores. New ids
follow the largest old one, so no id changes its meaning. Tokens that are merely *added* would be cut out of the middle
of other words, before the pre-tokenizer runs.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dapt_contract.stages.prepare import TokenizerExtensionConfig
from dapt_trainer.data.plain_tokenizer import plain_tokenizer
from dapt_trainer.errors import InputError
from dapt_trainer.tokenization.learn_merges import Learned, MergeLimits, NewToken, learn_merges
from dapt_trainer.tokenization.pre_tokens import Boundaries, count_words

FIELD = "spec.model.tokenizer.extend"
_TEXTS_A_BEAT = 1000
_SAVED_TOKEN_SCORE = 1e-4
"""Far below any difference between two splits that matters, far above rounding."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

TokenizerFile = dict[str, Any]
"""The content of a tokenizer.json, whose form depends on the kind of its model."""


@dataclass(frozen=True)
class GrownTokenizer:
    """Holds the file of an extended tokenizer and the tokens that it adds."""

    tokenizer_json: str
    tokens: tuple[NewToken, ...]
    """New tokens in the order of their ids, which have no gap."""

    @property
    def constituents(self) -> dict[int, tuple[int, ...]]:
        """Return the old ids that each new id stands for."""
        return {token.id: token.constituents for token in self.tokens}


def check_extendable(tokenizer_json: str, source: str) -> None:
    """Refuse a tokenizer that no vocabulary can be appended to.

    Raises:
        InputError: with the reason.
    """
    content: TokenizerFile = json.loads(tokenizer_json)
    model = content["model"]
    kind, reason = model.get("type"), None
    if kind not in ("BPE", "Unigram"):
        reason = f"is of kind {kind}, which has neither merges nor scored pieces that could be appended to"
    elif model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        reason = "marks the inside or the end of words in its tokens, which appended merges cannot keep"
    elif kind == "Unigram" and (token := _token_after_pieces(content)):
        reason = f"has added tokens behind its pieces ({token}), whose ids appended pieces would take"
    if reason is not None:
        raise InputError(f"{FIELD}: the tokenizer of {source} {reason}; remove the field")


def grow_tokenizer(
    tokenizer_json: str,
    texts: Callable[[], Iterable[str]],
    extension: TokenizerExtensionConfig,
    *,
    source: str,
    beat: Callable[[], None] = lambda: None,
) -> GrownTokenizer:
    """Learn new tokens on the texts and append them.

    Args:
        tokenizer_json: the old tokenizer's file.
        texts: returns the sample of the domain's training text; called up to three times.
        extension: how many tokens to add at most, and how frequent they must be.
        source: of the model, for messages.
        beat: called now and then.

    Raises:
        InputError: this tokenizer cannot be extended.
    """
    check_extendable(tokenizer_json, source)
    content: TokenizerFile = json.loads(tokenizer_json)
    learned = _learn(content, texts(), extension, beat=beat)
    if content["model"]["type"] == "Unigram":
        return GrownTokenizer(with_pieces(content, learned), tuple(learned.tokens))
    if content["model"].get("byte_fallback"):
        # A character that is spelled in bytes is no merge of tokens. Where some of them save more than the last merge
        # does, they become tokens first, and the merges are learned again over them.
        is_full = len(learned.tokens) == extension.vocabulary_size
        min_saved = learned.tokens[-1].saved_tokens if is_full else 0
        characters = byte_spelled_characters(content, texts(), extension, min_saved=min_saved, beat=beat)
        if characters:
            learned = _learn(content, texts(), extension, characters=characters, beat=beat)
    return GrownTokenizer(appended(content, learned), tuple(learned.tokens))


def _learn(
    content: TokenizerFile,
    texts: Iterable[str],
    extension: TokenizerExtensionConfig,
    *,
    characters: Sequence[NewToken] = (),
    beat: Callable[[], None],
) -> Learned:
    """Learn merges over the old tokens, and over characters that become tokens."""
    extended = appended(content, Learned(list(characters))) if characters else json.dumps(content)
    tokenizer = plain_tokenizer(extended)
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    is_boundary = (
        Boundaries(vocabulary, space="Ġ", digits_alone=True)
        if _is_byte_level(content)
        else Boundaries(vocabulary)
    )
    words = count_words(
        tokenizer, texts, excluded=_unmergeable_ids(content), is_boundary=is_boundary, beat=beat
    )
    limits = MergeLimits(extension.vocabulary_size - len(characters), extension.minimum_frequency)
    constituents = {token.id: token.constituents for token in characters}
    learned = learn_merges(words, vocabulary, limits, constituents=constituents, beat=beat)
    return Learned([*characters, *learned.tokens], learned.merges)


def byte_spelled_characters(
    content: TokenizerFile,
    texts: Iterable[str],
    extension: TokenizerExtensionConfig,
    *,
    min_saved: int,
    beat: Callable[[], None] = lambda: None,
) -> list[NewToken]:
    """Return new tokens for characters that the old tokenizer spells in bytes, those that save most first.

    Args:
        content: of the old tokenizer's file.
        texts: the sample.
        extension: how many tokens to add at most, and how frequent they must be.
        min_saved: tokens that each must save, at least one more.
        beat: called now and then.
    """
    vocabulary: dict[str, int] = content["model"]["vocab"]
    tokenizer = plain_tokenizer(json.dumps(content))
    normalizer = tokenizer.normalizer
    counts: Counter[str] = Counter()
    for number, text in enumerate(texts):
        counts.update(text if normalizer is None else normalizer.normalize_str(text))
        if number % _TEXTS_A_BEAT == 0:
            beat()
    candidates = []
    for character, count in counts.items():
        spelling = character.encode("utf-8", "surrogatepass")
        saved = (len(spelling) - 1) * count
        names = [f"<0x{byte:02X}>" for byte in spelling]
        if (
            count >= extension.minimum_frequency
            and saved > min_saved
            and character not in vocabulary
            and not character.isspace()
            and all(name in vocabulary for name in names)
        ):
            candidates.append((-saved, character, tuple(vocabulary[name] for name in names)))
    # Added tokens count: their ids may lie behind the model's own vocabulary.
    first_id = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    chosen = sorted(candidates)[: extension.vocabulary_size]
    return [
        NewToken(character, first_id + number, constituents, -negative_saved)
        for number, (negative_saved, character, constituents) in enumerate(chosen)
    ]


def appended(content: TokenizerFile, learned: Learned) -> str:
    """Return the tokenizer's file with the learned tokens and merges after the old ones."""
    model = content["model"]
    # Added tokens (specials among them) may have ids of their own outside of the model's vocabulary. They are written
    # into it under the same ids: a reader that builds the model first and adds them afterwards, as transformers does,
    # would otherwise give them new ids after the new tokens.
    vocabulary = dict(model["vocab"])
    for token in content.get("added_tokens") or ():
        vocabulary.setdefault(token["content"], token["id"])
    vocabulary |= {token.text: token.id for token in learned.tokens}
    texts = {number: text for text, number in vocabulary.items()}
    # Older files write a merge as one text with a space, newer ones as a list of two.
    is_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    pairs = [(texts[left], texts[right]) for left, right in learned.merges]
    merges = [" ".join(pair) for pair in pairs] if is_text else [list(pair) for pair in pairs]
    grown = model | {
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "merges": [*model["merges"], *merges],
    }
    return json.dumps(content | {"model": grown}, ensure_ascii=False)


def with_pieces(content: TokenizerFile, learned: Learned) -> str:
    """Return a Unigram tokenizer's file with the learned tokens as pieces after the old ones.

    A piece's score is the sum of its constituents' scores (logarithms of probabilities) and a very small bonus for each
    token that it saves. So the best split of a text is the one that was best before, with new pieces in place of their
    constituents; a score like that of a frequent word would also move the boundaries of the words around it.
    """
    model = content["model"]
    scores = [score for _, score in model["vocab"]]
    new = [
        [
            token.text,
            math.fsum(scores[number] for number in token.constituents)
            + _SAVED_TOKEN_SCORE * (len(token.constituents) - 1),
        ]
        for token in learned.tokens
    ]
    return json.dumps(content | {"model": model | {"vocab": [*model["vocab"], *new]}}, ensure_ascii=False)


def _is_byte_level(content: TokenizerFile) -> bool:
    """Return whether text is split into words before it is merged, over an alphabet of bytes."""
    return '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("normalizer")])


def _token_after_pieces(content: TokenizerFile) -> str:
    """Return the first added token whose id follows those of a Unigram's pieces; empty when there is none."""
    num_pieces = len(content["model"]["vocab"])
    added = content.get("added_tokens") or ()
    return next((str(token["content"]) for token in added if token["id"] >= num_pieces), "")


def _unmergeable_ids(content: TokenizerFile) -> set[int]:
    """Return the ids of added tokens, of the unknown token, and of single bytes that spell unknown characters."""
    model = content["model"]
    pieces = model["vocab"]
    texts = (
        {number: text for text, number in pieces.items()}
        if isinstance(pieces, dict)
        else {number: piece for number, (piece, _) in enumerate(pieces)}
    )
    ids = {int(token["id"]) for token in content.get("added_tokens") or ()}
    if model.get("unk_id") is not None:
        ids.add(int(model["unk_id"]))
    has_bytes = bool(model.get("byte_fallback"))
    unknown = model.get("unk_token")
    ids |= {
        number for number, text in texts.items() if text == unknown or (has_bytes and _BYTE.fullmatch(text))
    }
    return ids
