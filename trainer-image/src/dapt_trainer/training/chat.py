"""Conversations as tokens with labels on what the assistant says, by any chat template, exactly.

A template is rendered up to each of the assistant's turns: the text that the turn adds after the generation prompt, up
to and with the token that ends the turn, is a response; all other text is prompt. So the template needs no
`generation` markers, and nothing is guessed from its wording. Prompt and response are tokenized apart: a response
starts at a token boundary, as it does when the model is asked. A prompt token's label is -100, always.

A template that renders earlier turns otherwise once later ones follow (some drop the reasoning of earlier turns) has no
one text in which every turn stands as the model would say it: such a conversation becomes one example a turn, each with
the context that the model sees then. A template whose turns cannot be told from its generation prompt is refused.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

IGNORED_LABEL = -100
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ 'Answer: ' + message['content'] + eos_token + '\\n' }}"
    "{%- elif message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}"
    "{%- else -%}{{ 'Question: ' + message['content'] + '\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Answer: ' }}{%- endif -%}"
)
"""For base models without a chat template of their own; saved with the tuned model."""
_SHOWN_CHARACTERS = 40

Messages = list[dict[str, str]]


class TemplateError(ValueError):
    """The chat template and a conversation do not go together; one sentence without its place."""


@dataclass(frozen=True)
class Example:
    """One text as tokens; both have the same length."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    """The token where it belongs to a response, else -100."""

    @property
    def response_tokens(self) -> int:
        """What the loss counts."""
        return sum(label != IGNORED_LABEL for label in self.labels)

    def cut(self, length: int) -> Example:
        """Its first tokens, at 8 bytes each: a data set of them stays in memory, on every rank."""
        return Example(array("i", self.input_ids[:length]), array("i", self.labels[:length]))


def with_template(tokenizer: Any) -> Any:
    """The tokenizer with its own chat template, or the plain one where it has none."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def encode(tokenizer: Any, messages: Messages, *, first: int = 0) -> list[Example]:
    """A conversation, uncut; more than one example where the template rewrites earlier turns.

    Args:
        tokenizer: with its chat template.
        messages: at least one by the assistant at or after `first`.
        first: index of the first message that is learned; the assistant's turns before it are context.

    Raises:
        TemplateError: the template refuses the conversation, or hides what the assistant says.
    """
    turns = [place for place in range(first, len(messages)) if messages[place]["role"] == "assistant"]
    spans = [_Span.of(tokenizer, messages, turn) for turn in turns]
    if all(after.prompt.startswith(before.whole) for before, after in itertools.pairwise(spans)):
        return [_tokens(tokenizer, spans)]
    return [_tokens(tokenizer, [span]) for span in spans]


def encode_plain(tokenizer: Any, prompt: str, response: str) -> Example:
    """Prompt and response as they stand, one after the other, and the end-of-text token; no template.

    The prompt starts as the tokenizer starts every text (some put a token in front).
    """
    end = tokenizer.eos_token_id
    context = list(tokenizer(prompt)["input_ids"])
    if context and context[-1] == end:  # some tokenizers end every text
        context.pop()
    answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], end]
    return Example(context + answer, [IGNORED_LABEL] * len(context) + answer)


def stop_at_end_of_turn(model: Any, tokenizer: Any) -> None:
    """Let generation stop where the chat template ends the assistant's turn.

    Base models often come with a template whose end is not their end of text (ChatML's `<|im_end|>`): fine-tuning
    teaches the token, and the generation config has to know it.
    """
    if not tokenizer.chat_template:
        return
    try:
        (example,) = encode(
            tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
    except TemplateError:
        return
    known = model.generation_config.eos_token_id
    ends = [known] if isinstance(known, int) else list(known or [])
    if example.labels[-1] not in ends:
        model.generation_config.eos_token_id = [*ends, example.labels[-1]]


@dataclass(frozen=True)
class _Span:
    """One turn of the assistant in the rendered conversation."""

    prompt: str
    """All text before it, with the generation prompt."""
    end: int
    """Characters up to the end of the token that ends the turn."""
    whole: str
    """All text up to the turn's end, with what the template writes after that token."""

    @classmethod
    def of(cls, tokenizer: Any, messages: Messages, turn: int) -> _Span:
        prompt = _rendered(tokenizer, messages[:turn], add_generation_prompt=True)
        whole = _rendered(tokenizer, messages[: turn + 1])
        if not whole.startswith(prompt):
            same = next(
                (
                    place
                    for place, (one, other) in enumerate(zip(prompt, whole, strict=False))
                    if one != other
                ),
                min(len(prompt), len(whole)),
            )
            raise TemplateError(
                f"the chat template's generation prompt goes on with {_shown(prompt[same:])} where the assistant's "
                f"turn goes on with {_shown(whole[same:])}: what the assistant says cannot be told exactly; give the "
                "model a template whose generation prompt is how a turn begins"
            )
        return cls(prompt, len(prompt) + _end_of_turn(tokenizer, whole[len(prompt) :]), whole)


def _tokens(tokenizer: Any, spans: list[_Span]) -> Example:
    """One example of turns whose texts continue each other."""
    input_ids: list[int] = []
    labels: list[int] = []
    for text, is_response in _pieces(spans):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        input_ids += ids
        labels += ids if is_response else [IGNORED_LABEL] * len(ids)
    return Example(input_ids, labels)


def _pieces(spans: list[_Span]) -> Iterator[tuple[str, bool]]:
    place = 0
    for span in spans:
        yield span.prompt[place:], False
        yield span.whole[len(span.prompt) : span.end], True
        place = span.end


def _end_of_turn(tokenizer: Any, turn: str) -> int:
    """Characters of a rendered turn up to the end of its last special token; only blanks may follow it."""
    special = {
        *tokenizer.all_special_tokens,
        *(token.content for token in tokenizer.added_tokens_decoder.values()),
    }
    end = max((turn.rfind(token) + len(token) for token in special if token and token in turn), default=0)
    if end == 0 or turn[end:].strip():
        raise TemplateError(
            f"the chat template ends the assistant's turn with {_shown(turn)}, without a special token: the model "
            "would never learn to stop; let the template write eos_token after the assistant's content"
        )
    return end


def _rendered(tokenizer: Any, messages: Messages, *, add_generation_prompt: bool = False) -> str:
    from jinja2.exceptions import TemplateError as JinjaError

    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except JinjaError as error:
        raise TemplateError(f"the model's chat template refuses the conversation: {error}") from error


def _shown(text: str) -> str:
    """The end of a text, short enough for a sentence."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"...{text[-_SHOWN_CHARACTERS:]}")
