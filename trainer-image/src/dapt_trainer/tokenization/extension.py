"""A tokenizer with appended vocabulary: learned, written into its own file format, and checked against the old one.

Byte-pair tokenizers, byte-level (GPT-2, Llama 3, Qwen) and SentencePiece's (Llama 2, Mistral, Gemma), get new tokens
and the merges that make them, behind all old ones. New ids follow the largest old one, so no id changes its meaning.
Tokens that are merely *added* would be cut out of the middle of other words, before the pre-tokenizer ran.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dapt_contract.stages.prepare import TokenizerExtension
from dapt_trainer.errors import InputError
from dapt_trainer.tokenization.learning import Learned, NewToken, learn_merges
from dapt_trainer.tokenization.words import Boundaries, count_words

FIELD = "spec.model.tokenizer.extend"
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
    model = json.loads(tokenizer_json)["model"]
    reason = None
    if model.get("type") != "BPE":
        reason = f"is of kind {model.get('type')}, which has no merges that could be appended to"
    elif model.get("dropout"):
        reason = "merges at random (BPE dropout), so that no count of tokens holds"
    elif model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        reason = "marks the inside or the end of words in its tokens, which appended merges cannot keep"
    if reason is not None:
        raise InputError(f"{FIELD}: the tokenizer of {source} {reason}; remove the field")


def grow_tokenizer(
    tokenizer_json: str,
    texts: Iterable[str],
    wanted: TokenizerExtension,
    *,
    source: str,
    beat: Callable[[], None] = lambda: None,
) -> GrownTokenizer:
    """Learn new tokens on the texts and append them.

    Args:
        tokenizer_json: the old tokenizer's file.
        texts: the sample of the domain's training text.
        wanted: how many tokens at most, and how frequent.
        source: of the model, for messages.
        beat: called now and then.

    Raises:
        InputError: this tokenizer cannot be extended.
    """
    from tokenizers import Tokenizer

    check_extendable(tokenizer_json, source)
    content = json.loads(tokenizer_json)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    taken: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    model = content["model"]
    learned = learn_merges(
        count_words(
            tokenizer,
            texts,
            never=_never(content),
            is_boundary=None if content.get("pre_tokenizer") else Boundaries(taken),
            beat=beat,
        ),
        {number: text for text, number in model["vocab"].items()}.__getitem__,
        vocabulary=taken,
        first_id=max(taken.values(), default=-1) + 1,
        most_tokens=wanted.vocabulary_size,
        minimum_frequency=wanted.minimum_frequency,
        beat=beat,
    )
    return GrownTokenizer(appended(content, learned), tuple(learned.tokens))


def appended(content: dict[str, Any], learned: Learned) -> str:
    """The tokenizer's file with the learned tokens and merges behind the old ones.

    Added tokens (specials among them) that have an id of their own beside the model's vocabulary are written into it
    under the same id: a reader that builds the model first and adds them afterwards would otherwise number them anew,
    behind the new tokens.
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


def _never(content: dict[str, Any]) -> set[int]:
    """Ids of added tokens, of the unknown token, and of single bytes that stand in for unknown characters."""
    model = content["model"]
    found = {int(token["id"]) for token in content.get("added_tokens") or ()}
    if model.get("unk_token") in model["vocab"]:
        found.add(model["vocab"][model["unk_token"]])
    if model.get("byte_fallback"):
        found |= {number for text, number in model["vocab"].items() if _BYTE.fullmatch(text)}
    return found
