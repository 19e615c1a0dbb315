"""A tokenizer with appended vocabulary: learned, written into its own file format, and checked against the old one.

Byte-pair tokenizers, byte-level (GPT-2, Llama 3, Qwen) and SentencePiece's (Llama 2, Mistral, Gemma), get new tokens
and the merges that make them, behind all old ones. Unigram tokenizers get new pieces with scores. New ids follow the
largest old one, so no id changes its meaning. Tokens that are merely *added* would be cut out of the middle of other
words, before the pre-tokenizer ran.
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
from dapt_trainer.errors import InputError
from dapt_trainer.tokenization.learn_merges import Learned, NewToken, learn_merges
from dapt_trainer.tokenization.pre_tokens import Boundaries, count_words

FIELD = "spec.model.tokenizer.extend"
_TEXTS_A_BEAT = 1000
_SAVED_TOKEN_SCORE = 1e-4
"""Far below any difference between two splits that matters, far above rounding."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class GrownTokenizer:
    """The old tokenizer's file with more in it."""

    tokenizer_json: str
    tokens: tuple[NewToken, ...]
    """In the order of their ids, which have no gap."""

    @property
    def constituents(self) -> dict[int, tuple[int, ...]]:
        """Old ids that each new id stands for."""
        return {token.id: token.constituents for token in self.tokens}


def check_extendable(tokenizer_json: str, source: str) -> None:
    """Refuse a tokenizer that no vocabulary can be appended to.

    Raises:
        InputError: with the reason.
    """
    content = json.loads(tokenizer_json)
    model = content["model"]
    kind, reason = model.get("type"), None
    if kind not in ("BPE", "Unigram"):
        reason = f"is of kind {kind}, which has neither merges nor scored pieces that could be appended to"
    elif model.get("dropout"):
        reason = "merges at random (BPE dropout), so that no count of tokens holds"
    elif model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        reason = "marks the inside or the end of words in its tokens, which appended merges cannot keep"
    elif kind == "Unigram" and _behind(content):
        reason = (
            f"has added tokens behind its pieces ({_behind(content)}), whose ids appended pieces would take"
        )
    if reason is not None:
        raise InputError(f"{FIELD}: the tokenizer of {source} {reason}; remove the field")


def grow_tokenizer(
    tokenizer_json: str,
    texts: Callable[[], Iterable[str]],
    wanted: TokenizerExtensionConfig,
    *,
    source: str,
    beat: Callable[[], None] = lambda: None,
) -> GrownTokenizer:
    """Learn new tokens on the texts and append them.

    Args:
        tokenizer_json: the old tokenizer's file.
        texts: gives the sample of the domain's training text, once more at each call.
        wanted: how many tokens at most, and how frequent.
        source: of the model, for messages.
        beat: called now and then.

    Raises:
        InputError: this tokenizer cannot be extended.
    """
    check_extendable(tokenizer_json, source)
    content = json.loads(tokenizer_json)
    if content["model"]["type"] == "Unigram":
        learned = _learned(content, texts(), wanted, beat=beat)
        return GrownTokenizer(with_pieces(content, learned), tuple(learned.tokens))
    learned = _learned(content, texts(), wanted, beat=beat)
    if content["model"].get("byte_fallback"):
        least = learned.tokens[-1].saved_tokens if len(learned.tokens) == wanted.vocabulary_size else 0
        found = characters(content, texts(), wanted, least_saved=least, beat=beat)
        if found:
            learned = _learned(content, texts(), wanted, spelled=found, beat=beat)
    return GrownTokenizer(appended(content, learned), tuple(learned.tokens))


def _learned(
    content: dict[str, Any],
    texts: Iterable[str],
    wanted: TokenizerExtensionConfig,
    *,
    spelled: Sequence[NewToken] = (),
    beat: Callable[[], None],
) -> Learned:
    """Merges over the old tokens, and over characters that are tokens now."""
    extended = appended(content, Learned(list(spelled))) if spelled else json.dumps(content)
    tokenizer = plain_tokenizer(extended)
    taken: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    own = {number: text for text, number in taken.items()}
    learned = learn_merges(
        count_words(
            tokenizer,
            texts,
            never=_never(content),
            is_boundary=Boundaries(taken, space="Ġ", digits_alone=True)
            if _is_byte_level(content)
            else Boundaries(taken),
            beat=beat,
        ),
        own.__getitem__,
        vocabulary=taken,
        first_id=max(taken.values(), default=-1) + 1,
        most_tokens=wanted.vocabulary_size - len(spelled),
        minimum_frequency=wanted.minimum_frequency,
        constituents={token.id: token.constituents for token in spelled},
        beat=beat,
    )
    return Learned([*spelled, *learned.tokens], learned.merges)


def characters(
    content: dict[str, Any],
    texts: Iterable[str],
    wanted: TokenizerExtensionConfig,
    *,
    least_saved: int,
    beat: Callable[[], None] = lambda: None,
) -> list[NewToken]:
    """Characters that the old tokenizer spells in bytes, and that save more tokens than the last of the merges would.

    Args:
        content: of the old tokenizer's file.
        texts: the sample.
        wanted: how many at most, and how frequent.
        least_saved: tokens that one must save.
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
    found = []
    for character, count in counts.items():
        spelling = character.encode("utf-8", "surrogatepass")
        saved = (len(spelling) - 1) * count
        names = [f"<0x{byte:02X}>" for byte in spelling]
        if (
            count >= wanted.minimum_frequency
            and saved > least_saved
            and character not in vocabulary
            and not character.isspace()
            and all(name in vocabulary for name in names)
        ):
            found.append((-saved, character, tuple(vocabulary[name] for name in names)))
    first = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return [
        NewToken(character, first + place, constituents, -negative)
        for place, (negative, character, constituents) in enumerate(sorted(found)[: wanted.vocabulary_size])
    ]


def appended(content: dict[str, Any], learned: Learned) -> str:
    """The tokenizer's file with the learned tokens and merges behind the old ones.

    Added tokens (specials among them) that have an id of their own beside the model's vocabulary are written into it
    under the same id: a reader that builds the model first and adds them afterwards, as transformers does, would
    otherwise number them anew, behind the new tokens.
    """
    model = content["model"]
    vocabulary = dict(model["vocab"])
    for token in content.get("added_tokens") or ():
        vocabulary.setdefault(token["content"], token["id"])
    vocabulary |= {token.text: token.id for token in learned.tokens}
    texts = {number: text for text, number in vocabulary.items()}
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    merges = [(texts[left], texts[right]) for left, right in learned.merges]
    new = [" ".join(pair) for pair in merges] if as_text else [list(pair) for pair in merges]
    grown = model | {
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "merges": [*model["merges"], *new],
    }
    return json.dumps(content | {"model": grown}, ensure_ascii=False)


def with_pieces(content: dict[str, Any], learned: Learned) -> str:
    """A Unigram tokenizer's file with the learned tokens as pieces behind the old ones.

    A piece's score is the sum of its constituents' (they are logarithms of probabilities) and a trifle for each token
    that it saves. So the best split of a text is the one that was best before, with new pieces where their constituents
    stood; a score like a frequent word's would draw the boundaries of the words around it, too.
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


def plain_tokenizer(tokenizer_json: str) -> Any:
    """A tokenizer of the `tokenizers` library that cuts and fills nothing, and reads special tokens as text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _is_byte_level(content: dict[str, Any]) -> bool:
    """Whether text is split into words before it is merged, over an alphabet of bytes."""
    return '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("normalizer")])


def _behind(content: dict[str, Any]) -> str:
    """The first added token with an id behind a Unigram's pieces, if there is one."""
    pieces = len(content["model"]["vocab"])
    return next((t["content"] for t in content.get("added_tokens") or () if t["id"] >= pieces), "")


def _never(content: dict[str, Any]) -> set[int]:
    """Ids of added tokens, of the unknown token, and of single bytes that stand in for unknown characters."""
    model = content["model"]
    pieces = model["vocab"]
    texts = (
        {number: text for text, number in pieces.items()}
        if isinstance(pieces, dict)
        else {number: piece for number, (piece, _) in enumerate(pieces)}
    )
    found = {int(token["id"]) for token in content.get("added_tokens") or ()}
    if model.get("unk_id") is not None:
        found.add(int(model["unk_id"]))
    bytes_alone = bool(model.get("byte_fallback"))
    unknown = model.get("unk_token")
    found |= {n for n, text in texts.items() if text == unknown or (bytes_alone and _BYTE.fullmatch(text))}
    return found
