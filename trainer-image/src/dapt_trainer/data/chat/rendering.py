"""Renders conversations with a chat template, and finds in the text what the assistant writes.

A template is rendered up to each of the assistant's turns: the text that the turn adds after the generation prompt, up
to and including the token that ends the turn, is a response; all other text is context. So the template needs no
`generation` markers, and nothing is guessed from its wording.

Some templates render earlier turns differently once later ones follow (they drop the reasoning of earlier turns). Then
no single text contains every turn as the model would write it, so the conversation becomes one text for each turn,
with the context that the model has at that turn. A template whose turns do not continue its generation prompt is
refused.

The environment is that of transformers (`utils/chat_template_utils.py`), with one difference: a template that asks for
today's date or for a random choice gets the same one each time, so that one data set has one text.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dapt_contract.base import JsonObject
from dapt_contract.sentences import shortened

RENDERED_AT: Final = datetime(2026, 1, 1)
"""Date that a template gets from `strftime_now`."""
MAX_TEXT_CHARACTERS: Final = 32_000_000
"""Longest text that a conversation may become."""
_SHOWN_CHARACTERS = 40
_MAX_REASON_CHARACTERS = 200
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names that people and templates have for the reasoning before an answer; transformers passes them on alike."""

Message: TypeAlias = JsonObject
"""`role`, `content`, and what else the chat template may use."""


class TemplateError(ValueError):
    """Reports that the chat template cannot render a conversation as labelled text; the message names no line."""


@dataclass(frozen=True)
class LabelledText:
    """Holds a text and the parts of it that are learned."""

    text: str
    responses: tuple[tuple[int, int], ...]
    """(first character, character behind the last) of each response, in order."""
    is_plain: bool = False
    """Whether it was made without a chat template: the tokenizer starts it as every text, and it ends with the
    end-of-text token."""

    def as_line(self) -> dict[str, object]:
        """Return the text as it is written to a file of JSON lines."""
        line: dict[str, object] = {"text": self.text, "responses": [list(span) for span in self.responses]}
        return line | {"plain": True} if self.is_plain else line

    @classmethod
    def of_line(cls, line: object) -> LabelledText:
        """Return the text of a line.

        Raises:
            ValueError: the line is none of `as_line`.
        """
        fields = line if isinstance(line, Mapping) else {}
        text, responses = fields.get("text"), fields.get("responses")
        if not isinstance(text, str) or not isinstance(responses, list) or not responses:
            raise ValueError("no text with responses")
        spans = tuple((int(start), int(end)) for start, end in responses)
        ends = [0, *(edge for span in spans for edge in span), len(text)]
        if ends != sorted(ends):
            raise ValueError("responses outside their text")
        return cls(text, spans, bool(fields.get("plain")))


@dataclass(frozen=True)
class Conversation:
    """Holds a conversation, what of it is learned, and which of its fields a template must not ignore."""

    messages: Sequence[Message]
    learned: Sequence[int]
    """Indices of the messages by the assistant that are learned; none: it is a prompt, which the assistant answers."""
    variables: Mapping[str, object] = field(default_factory=dict)
    """What the template gets besides the messages: tools, documents and others by their names."""
    checked_fields: Sequence[tuple[int, str]] = ()
    """(index of a message, field) that would change the text if the template used them."""


@dataclass(frozen=True)
class TemplateSet:
    """Holds the chat templates of a tokenizer."""

    templates: Mapping[str, str]
    """By name; the only one of most tokenizers is `default`."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Texts of bos_token, eos_token and others, which templates name."""
    control_tokens: Sequence[str] = ()
    """Texts of all added tokens, one of which must end a turn."""
    description: str = "the model's chat template"
    """What messages call the template."""

    def name_for(self, *, has_tools: bool) -> str:
        """Return the name of the template for a conversation, as transformers chooses it.

        Raises:
            TemplateError: there are several and none is the default.
        """
        if has_tools and "tool_use" in self.templates:
            return "tool_use"
        if "default" in self.templates:
            return "default"
        raise TemplateError(
            f"the model's tokenizer has the chat templates {', '.join(sorted(self.templates))} and none that is named "
            "default; name one of them default in tokenizer_config.json"
        )


class Renderer:
    """Renders conversations with the chat templates of one tokenizer, in this process."""

    def __init__(self, templates: TemplateSet) -> None:
        self._set = templates
        self._environment = _environment()
        self._compiled: dict[str, Template] = {}

    def render(self, conversation: Conversation) -> list[LabelledText]:
        """Return a conversation as one text, or as several where the template rewrites earlier turns.

        Raises:
            TemplateError: the template rejects the conversation or is damaged, its turns cannot be separated, or it
                ignores a field of the conversation.
        """
        if not conversation.learned:
            prompt = self._text(conversation, len(conversation.messages), has_generation_prompt=True)
            return [LabelledText(prompt, ())]
        conversation = self._with_rendered_nulls(conversation)
        turns = [self._turn(conversation, index) for index in conversation.learned]
        self._check_fields(conversation)
        # One text contains every turn only where each later rendering continues the earlier one.
        if all(after.prompt.startswith(before.whole) for before, after in itertools.pairwise(turns)):
            return [LabelledText(turns[-1].whole[: turns[-1].end], tuple(turn.span for turn in turns))]
        _check_length(sum(turn.end for turn in turns))
        return [LabelledText(turn.whole[: turn.end], (turn.span,)) for turn in turns]

    def _turn(self, conversation: Conversation, index: int) -> _Turn:
        prompt = self._text(conversation, index, has_generation_prompt=True)
        whole = self._text(conversation, index + 1)
        if not whole.startswith(prompt):
            pairs = zip(prompt, whole, strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            raise TemplateError(
                f"the chat template's generation prompt continues with {_quoted(prompt[same:])} where the assistant's "
                f"turn continues with {_quoted(whole[same:])}, so the assistant's text cannot be separated exactly; "
                "use a template whose generation prompt is the beginning of a turn"
            )
        return _Turn(prompt, whole, len(prompt) + self._end_of_turn(whole[len(prompt) :], index))

    def _end_of_turn(self, turn: str, index: int) -> int:
        """Return the number of characters of a rendered turn up to the end of its last control token.

        Only white space may follow that token.
        """
        ends = {turn.rfind(token) + len(token): token for token in self._set.control_tokens if token in turn}
        end = max(ends, default=0)
        if end == 0 or turn[end:].strip():
            raise TemplateError(
                "the chat template ends the assistant's turn without a special token: the model would never learn to "
                "stop; make the template write eos_token after the assistant's content"
            )
        if turn.count(ends[end]) > 1:
            raise TemplateError(
                f"messages[{index}] has the token {ends[end]!r} in its text, which ends a turn: the model would learn "
                "to stop there; remove it from the text, since the chat template writes it"
            )
        return end

    def _with_rendered_nulls(self, conversation: Conversation) -> Conversation:
        """Return the conversation with an empty text instead of each null content that the template cannot have.

        Some templates ask whether a content is null, some write out whatever it is: as the word "None".
        """
        messages = list(conversation.messages)
        for index, message in enumerate(messages):
            if message.get("content", "") is not None:
                continue
            up_to = Conversation(messages, (), conversation.variables)
            try:
                text = self._text(up_to, index + 1)
            except TemplateError:
                needs_text = True
            else:
                needs_text = text == self._text(_with_field(up_to, index, "content", "None"), index + 1)
            if needs_text:
                messages[index] = message | {"content": ""}
        return Conversation(
            messages, conversation.learned, conversation.variables, conversation.checked_fields
        )

    def _check_fields(self, conversation: Conversation) -> None:
        """Refuse a conversation with a field that makes no difference to the text."""
        for index, name in conversation.checked_fields:
            with_field = self._text(conversation, index + 1)
            if with_field == self._text(_with_field(conversation, index, name, None), index + 1):
                raise TemplateError(
                    f"messages[{index}].{name} is not used by {self._set.description}; remove the field, or use a "
                    "model whose template has a place for it"
                )
        last = max(conversation.learned) + 1
        for name in conversation.variables:
            others = {key: value for key, value in conversation.variables.items() if key != name}
            without = Conversation(conversation.messages, conversation.learned, others)
            if self._text(conversation, last) == self._text(without, last):
                raise TemplateError(
                    f"field {name!r} is not used by {self._set.description}; remove it, or use a model whose "
                    "template has a place for it"
                )

    def _text(self, conversation: Conversation, count: int, *, has_generation_prompt: bool = False) -> str:
        """Return the first messages as text.

        Raises:
            TemplateError: the template rejects them, is damaged, or writes too much.
        """
        variables = dict(conversation.variables)
        template = self._template(self._set.name_for(has_tools="tools" in variables))
        messages = [_with_all_reasoning_fields(message) for message in conversation.messages[:count]]
        random.seed(0)  # jinja has a filter that chooses at random
        try:
            text = template.render(
                **{"tools": None, "documents": None, **self._set.special_tokens, **variables},
                messages=messages,
                add_generation_prompt=has_generation_prompt,
            )
        except JinjaError as error:
            raise TemplateError(
                f"the model's chat template rejects the conversation: {_reason(error)}"
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # a template may raise whatever its expressions do
            raise TemplateError(
                f"the model's chat template fails at the conversation ({type(error).__name__}: {_reason(error)})"
            ) from error
        _check_length(len(text))
        return text

    def _template(self, name: str) -> Template:
        if name not in self._compiled:
            try:
                self._compiled[name] = self._environment.from_string(self._set.templates[name])
            except TemplateSyntaxError as error:
                raise TemplateError(
                    f"the model's chat template is damaged (line {error.lineno}: {_reason(error)}); copy the model's "
                    "tokenizer again, or correct its chat_template"
                ) from error
        return self._compiled[name]


@dataclass(frozen=True)
class _Turn:
    """Holds one turn of the assistant in the rendered conversation."""

    prompt: str
    """All text before the turn, with the generation prompt."""
    whole: str
    """All text up to the turn's end, with what the template writes after the token that ends it."""
    end: int
    """Number of characters of `whole` up to the end of the token that ends the turn."""

    @property
    def span(self) -> tuple[int, int]:
        return len(self.prompt), self.end


class _GenerationBlocks(Extension):
    """Renders what stands between `{% generation %}` and `{% endgeneration %}`, which some templates mark."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise JinjaError(message)

    def to_json(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes what HTML reserves.
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    functions: dict[str, Callable[..., object]] = {
        "raise_exception": raise_exception,
        "strftime_now": RENDERED_AT.strftime,
    }
    environment.globals.update(functions)
    environment.filters["tojson"] = to_json
    return environment


def _check_length(characters: int) -> None:
    if characters > MAX_TEXT_CHARACTERS:
        raise TemplateError(
            f"the model's chat template writes {characters:,} characters for the conversation, over the limit of "
            f"{MAX_TEXT_CHARACTERS:,}; split the conversation, or use another template"
        )


def _with_field(conversation: Conversation, index: int, name: str, value: str | None) -> Conversation:
    """Return the conversation with another value of a message's field; None: without it."""
    messages = list(conversation.messages)
    others = {key: old for key, old in messages[index].items() if key != name}
    messages[index] = others if value is None else others | {name: value}
    return Conversation(messages, conversation.learned, conversation.variables)


def _with_all_reasoning_fields(message: Message) -> Message:
    """Return the message with its reasoning under each name that templates read, as transformers passes it."""
    value = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    if value is None:
        return message
    return {"thinking": value, **message, "reasoning_content": value}


def _reason(error: Exception) -> str:
    return shortened(" ".join(str(error).split()), _MAX_REASON_CHARACTERS) or type(error).__name__


def _quoted(text: str) -> str:
    """Return the end of a text in quotes, short enough for a message."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"...{text[-_SHOWN_CHARACTERS:]}")
