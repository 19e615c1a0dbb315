"""Tokenizes rendered texts so that the model learns from exactly the tokens that it meets when it answers.

When the model answers, the text up to the response was tokenized as a whole and the response is generated after it. So
a response begins behind the tokens of the text before it. Where these are the first tokens of the whole text too, which
is the rule, the whole text is tokenized at once and cut there: what stands before a piece of text decides its tokens in
many tokenizers (SentencePiece puts a space in front of a text, byte-level ones join a space to the word after it).

Where a token of the whole text would span the border, the context keeps the tokens that it has alone, and the response
gets those that it has in the middle of a text. Each turn is then an example of its own: the context of a later turn is
tokenized as a whole, as in generation.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dapt_trainer.data.chat.rendering import LabelledText
from dapt_trainer.modeling.labels import IGNORED_LABEL

_NEUTRAL_BEGINNINGS = ("\n", "a", ".", "1", "\n\n")
"""Texts of which one, put before a response, is not joined to it by the tokenizer."""


@dataclass(frozen=True)
class TextEncoder:
    """Holds a tokenizer as what examples need of it."""

    encode: Callable[[str], Sequence[int]]
    """Returns the token ids of a text, without special tokens around it; texts of special tokens become those."""
    encode_with_beginning: Callable[[str], Sequence[int]]
    """The same with the special tokens that the tokenizer puts around every text."""
    end_of_text_id: int


@dataclass(frozen=True)
class Example:
    """Holds one text as token ids and labels of the same length."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    """The token id where the token belongs to a response, else -100."""

    @property
    def response_tokens(self) -> int:
        """Return the number of tokens that the loss counts."""
        return sum(label != IGNORED_LABEL for label in self.labels)

    def cut(self, length: int) -> Example:
        """Return its first tokens, at 8 bytes each: every rank keeps the whole data set in memory."""
        return Example(array("i", self.input_ids[:length]), array("i", self.labels[:length]))


def examples_of(text: LabelledText, encoder: TextEncoder) -> list[Example]:
    """Return the examples of a text, uncut: one, or one for each response where a token would span its border."""
    if text.is_plain:
        return [_plain_example(text, encoder)]
    whole = list(encoder.encode(text.text))
    borders = [_tokens_before(text.text, edge, whole, encoder) for span in text.responses for edge in span]
    if None not in borders:
        labels = [IGNORED_LABEL] * len(whole)
        places = [place for place in borders if place is not None]
        for start, end in zip(places[::2], places[1::2], strict=True):
            labels[start:end] = whole[start:end]
        return [Example(whole, labels)]
    return [_single_example(text.text, span, encoder) for span in text.responses]


@dataclass
class Lengths:
    """Counts what the sequence length does to examples or pairs."""

    kept: int = 0
    cut: int = 0
    """How many of the kept ones lost their end."""
    without_response: int = 0
    """How many have no response (a pair: not both) within the length."""
    equal: int = 0
    """Pairs whose answers are equal within the length."""
    tokens: int = 0
    """Tokens of the kept ones within the length; of a pair both texts count."""


@dataclass(frozen=True)
class Pair:
    """Holds one prompt with its two answers; only the answers have labels."""

    chosen: Example
    rejected: Example

    @property
    def tokens(self) -> int:
        """Return the number of tokens of both texts."""
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)


def cut_examples(
    texts: Sequence[LabelledText], encoder: TextEncoder, length_tokens: int
) -> tuple[list[Example], int, int]:
    """Return the examples of a conversation's texts that have a response within a length.

    Returns:
        (examples, how many of them were cut, how many more have no response within the length).
    """
    kept, cut, dropped = [], 0, 0
    for text in texts:
        for example in examples_of(text, encoder):
            short = example.cut(length_tokens)
            if short.response_tokens:
                kept.append(short)
                cut += len(short.labels) < len(example.labels)
            else:
                dropped += 1
    return kept, cut, dropped


def cut_pair(
    chosen: LabelledText, rejected: LabelledText, encoder: TextEncoder, length_tokens: int, lengths: Lengths
) -> Pair | None:
    """Return a pair cut at a length and count it; None where it teaches nothing within that length."""
    whole = Pair(_whole_answer(chosen, encoder), _whole_answer(rejected, encoder))
    pair = Pair(whole.chosen.cut(length_tokens), whole.rejected.cut(length_tokens))
    if not (pair.chosen.response_tokens and pair.rejected.response_tokens):
        lengths.without_response += 1
        return None
    if pair.chosen.input_ids == pair.rejected.input_ids:
        # Equal answers have no margin, and their gradients cancel.
        lengths.equal += 1
        return None
    lengths.kept += 1
    lengths.cut += pair.tokens < whole.tokens
    lengths.tokens += pair.tokens
    return pair


def count_example(
    texts: Sequence[LabelledText], encoder: TextEncoder, length_tokens: int, lengths: Lengths
) -> None:
    """Count what a length does to a conversation."""
    kept, cut, _ = cut_examples(texts, encoder, length_tokens)
    lengths.kept += bool(kept)
    lengths.cut += bool(cut)
    lengths.without_response += not kept
    lengths.tokens += sum(len(example.input_ids) for example in kept)


def count_pair(
    texts: Sequence[LabelledText], encoder: TextEncoder, length_tokens: int, lengths: Lengths
) -> None:
    """Count what a length does to a pair: its chosen and its rejected text."""
    chosen, rejected = texts
    cut_pair(chosen, rejected, encoder, length_tokens, lengths)


def _whole_answer(text: LabelledText, encoder: TextEncoder) -> Example:
    """Return the one example of an answer, which may have several turns.

    Where a token would span the border of one of its turns, only the first turn begins as in generation.
    """
    examples = examples_of(text, encoder)
    if len(examples) == 1:
        return examples[0]
    return _turns_in_a_row(text, encoder)


def _turns_in_a_row(text: LabelledText, encoder: TextEncoder) -> Example:
    """Return all turns of an answer as one example; each piece after the prompt has the tokens of a continuation."""
    start = text.responses[0][0]
    ids = list(encoder.encode(text.text[:start]))
    labels = [IGNORED_LABEL] * len(ids)
    for first, end in text.responses:
        between = _continuation(text.text[start:first], encoder) if first > start else []
        response = _continuation(text.text[first:end], encoder)
        ids += between + response
        labels += [IGNORED_LABEL] * len(between) + response
        start = end
    return Example(ids, labels)


def _tokens_before(text: str, edge: int, whole: Sequence[int], encoder: TextEncoder) -> int | None:
    """Return the number of tokens before a character; None where the text before it has other tokens on its own."""
    if edge == len(text):
        return len(whole)
    before = list(encoder.encode(text[:edge]))
    return len(before) if list(whole[: len(before)]) == before else None


def _single_example(text: str, span: tuple[int, int], encoder: TextEncoder) -> Example:
    """Return the example of one response with all that stands before it."""
    start, end = span
    context = list(encoder.encode(text[:start]))
    whole = list(encoder.encode(text[:end]))
    is_prefix = whole[: len(context)] == context
    response = whole[len(context) :] if is_prefix else _continuation(text[start:end], encoder)
    return Example(context + response, [IGNORED_LABEL] * len(context) + response)


def _plain_example(text: LabelledText, encoder: TextEncoder) -> Example:
    """Return prompt, response and the end-of-text token; the prompt starts as the tokenizer starts every text."""
    ((start, end),) = text.responses

    def encoded(part: str) -> list[int]:
        ids = list(encoder.encode_with_beginning(part))
        # Some tokenizers end every text with that token.
        return ids[:-1] if ids and ids[-1] == encoder.end_of_text_id else ids

    context, whole = encoded(text.text[:start]), encoded(text.text[:end])
    is_prefix = whole[: len(context)] == context
    response = whole[len(context) :] if is_prefix else _continuation(text.text[start:end], encoder)
    response.append(encoder.end_of_text_id)
    return Example(context + response, [IGNORED_LABEL] * len(context) + response)


def _continuation(text: str, encoder: TextEncoder) -> list[int]:
    """Return the tokens of a text in the middle of another one."""
    for beginning in _NEUTRAL_BEGINNINGS:
        before, whole = list(encoder.encode(beginning)), list(encoder.encode(beginning + text))
        if whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
    return list(encoder.encode(text))
