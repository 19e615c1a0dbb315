"""Tokenizes conversations with labels on exactly what the assistant writes, for any chat template.

A template is rendered up to each of the assistant's turns: the text that the turn adds after the generation prompt, up
to and including the token that ends the turn, is a response; all other text is prompt. So the template needs no
`generation` markers, and nothing is guessed from its wording. Prompt and response are tokenized apart: a response
starts at a token boundary, as it does in generation. A prompt token's label is always -100.

Some templates render earlier turns differently once later ones follow (they drop the reasoning of earlier turns). Then
no single text contains every turn as the model would write it, so the conversation becomes one example for each turn,
with the context that the model has at that turn. A template whose turns do not continue its generation prompt is
refused.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError as JinjaError
from transformers import PreTrainedModel

from dapt_trainer.data.packing.torch_dataset import IGNORED_LABEL
from dapt_trainer.modeling.protocols import Tokenizer

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ 'Answer: ' + message['content'] + eos_token + '\\n' }}"
    "{%- elif message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}"
    "{%- else -%}{{ 'Question: ' + message['content'] + '\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Answer: ' }}{%- endif -%}"
)
"""Template for base models that have none; saved with the tuned model."""
MAX_TEMPLATE_PROBLEMS = 5
"""Problems after which tokenizing a data set ends: a template that is wrong is wrong for every line."""
LINES_PER_HEARTBEAT = 256
_SHOWN_CHARACTERS = 40

Messages = list[dict[str, str]]


class TemplateError(ValueError):
    """Reports that the chat template cannot render a conversation as labelled text; the message names no line."""


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


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with its own chat template, or with the plain one where it has none."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def encode(tokenizer: Tokenizer, messages: Messages, *, first: int = 0) -> list[Example]:
    """Return a conversation, uncut, as one example, or as several where the template rewrites earlier turns.

    Args:
        tokenizer: with its chat template.
        messages: at least one of the assistant's at or after `first`.
        first: index of the first message that is learned; the assistant's turns before it are context.

    Raises:
        TemplateError: the template rejects the conversation, or its turns cannot be separated.
    """
    turns = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
    spans = [_Span.of(tokenizer, messages, turn) for turn in turns]
    # One text contains every turn only where each later rendering continues the earlier one.
    if all(after.prompt.startswith(before.whole) for before, after in itertools.pairwise(spans)):
        return [_tokens(tokenizer, spans)]
    return [_tokens(tokenizer, [span]) for span in spans]


def encode_plain(tokenizer: Tokenizer, prompt: str, response: str) -> Example:
    """Return prompt, response and the end-of-text token without a template.

    The prompt starts as the tokenizer starts every text (some add a token in front).
    """
    end = tokenizer.eos_token_id
    context = list(tokenizer(prompt)["input_ids"])
    if context and context[-1] == end:  # some tokenizers end every text
        context.pop()
    answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], end]
    return Example(context + answer, [IGNORED_LABEL] * len(context) + answer)


def stop_at_end_of_turn(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Make generation stop at the token with which the chat template ends the assistant's turn.

    Many base models have a template whose end is not their end of text (ChatML's `<|im_end|>`): fine-tuning teaches the
    token, and the generation config must list it.
    """
    if not tokenizer.chat_template:
        return
    try:
        (example,) = encode(
            tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
    except TemplateError:
        return
    configured = model.generation_config.eos_token_id
    ends = [configured] if isinstance(configured, int) else list(configured or [])
    if example.labels[-1] not in ends:
        model.generation_config.eos_token_id = [*ends, example.labels[-1]]


@dataclass(frozen=True)
class _Span:
    """Holds one turn of the assistant in the rendered conversation."""

    prompt: str
    """All text before the turn, with the generation prompt."""
    end: int
    """Number of characters up to the end of the token that ends the turn."""
    whole: str
    """All text up to the turn's end, with what the template writes after that token."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, messages: Messages, turn: int) -> _Span:
        prompt = _rendered(tokenizer, messages[:turn], add_generation_prompt=True)
        whole = _rendered(tokenizer, messages[: turn + 1])
        if not whole.startswith(prompt):
            pairs = zip(prompt, whole, strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            raise TemplateError(
                f"the chat template's generation prompt continues with {_quoted(prompt[same:])} where the assistant's "
                f"turn continues with {_quoted(whole[same:])}, so the assistant's text cannot be separated exactly; "
                "use a template whose generation prompt is the beginning of a turn"
            )
        return cls(prompt, len(prompt) + _end_of_turn(tokenizer, whole[len(prompt) :]), whole)


def _tokens(tokenizer: Tokenizer, spans: list[_Span]) -> Example:
    """Return one example of turns whose texts continue each other."""
    input_ids: list[int] = []
    labels: list[int] = []
    for text, is_response in _pieces(spans):
        # Apart, so that a response starts at a token boundary, as it does in generation.
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        input_ids += ids
        labels += ids if is_response else [IGNORED_LABEL] * len(ids)
    return Example(input_ids, labels)


def _pieces(spans: list[_Span]) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of the text in their order, each with whether it is a response."""
    end = 0
    for span in spans:
        yield span.prompt[end:], False
        yield span.whole[len(span.prompt) : span.end], True
        end = span.end


def _end_of_turn(tokenizer: Tokenizer, turn: str) -> int:
    """Return the number of characters of a rendered turn up to the end of its last special token.

    Only white space may follow that token.
    """
    special = {
        *tokenizer.all_special_tokens,
        *(token.content for token in tokenizer.added_tokens_decoder.values()),
    }
    end = max((turn.rfind(token) + len(token) for token in special if token and token in turn), default=0)
    if end == 0 or turn[end:].strip():
        raise TemplateError(
            f"the chat template ends the assistant's turn with {_quoted(turn)}, without a special token: the model "
            "would never learn to stop; make the template write eos_token after the assistant's content"
        )
    return end


def _rendered(tokenizer: Tokenizer, messages: Messages, *, add_generation_prompt: bool = False) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except JinjaError as error:
        raise TemplateError(f"the model's chat template rejects the conversation: {error}") from error


def _quoted(text: str) -> str:
    """Return the end of a text in quotes, short enough for a message."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"...{text[-_SHOWN_CHARACTERS:]}")
