"""Recognizes the layouts of examples that people have, by the names of a record's fields.

A layout is chosen only where one alone fits. docs/finetuning.md has the table of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dapt_contract.base import JsonObject
from dapt_contract.stages.tuning_data import FieldNames
from dapt_trainer.data.chat.rendering import Conversation, LabelledText
from dapt_trainer.data.chat.template_files import TOKEN_NAMES
from dapt_trainer.data.items.messages import (
    IGNORED_FIELDS,
    REASONING_FIELDS,
    Messages,
    RecordError,
    is_empty,
    is_list_of_messages,
    read_messages,
    read_tools,
    read_weight,
    text_message,
)

_MAX_SHOWN_FIELDS = 12
_SYSTEM_FIELDS = ("system", "system_prompt")
_VARIABLES = ("tools", "documents", "chat_template_kwargs")
_RESERVED_VARIABLES = frozenset({"messages", "add_generation_prompt"})
"""Names under which templates get the conversation itself."""
JUDGEMENTS = ("label", "kto_tag")
"""Fields of KTO's records, which hold one answer each and whether it is good."""
_IGNORED_OF_RECORDS = IGNORED_FIELDS | {"parallel_tool_calls", "prompt_id"}
_MEANINGFUL = frozenset(
    {
        "answer", "audio", "audios", "chosen", "completion", "context", "conversation", "conversations", "file",
        "files", "function_call", "functions", "history", "image", "images", "input", "instruction", "messages",
        "output", "prompt", "question", "rejected", "response", "tool_calls", "video", "videos",
        *_SYSTEM_FIELDS, *_VARIABLES, *REASONING_FIELDS,
    }
)  # fmt: skip
"""Fields that say something about the example; a record that has one which is not used is refused."""


@dataclass(frozen=True)
class Layout:
    """Names the fields of one way to write an example."""

    name: str
    """For people; empty for the forms of the reference."""
    messages: str = ""
    prompt: str = ""
    response: str = ""
    input: str = ""
    """Optional text that follows the prompt."""

    def fits(self, record: Mapping[str, object]) -> bool:
        """Return whether a record has the layout's fields."""
        required = (self.messages,) if self.messages else (self.prompt, self.response)
        return all(record.get(name) is not None for name in required)

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the names of all fields."""
        return tuple(name for name in (self.messages, self.prompt, self.input, self.response) if name)


LAYOUTS = (
    Layout("", messages="messages"),
    Layout("ShareGPT", messages="conversations"),
    Layout("a conversation", messages="conversation"),
    Layout("", prompt="prompt", response="response"),
    Layout("prompt and completion", prompt="prompt", response="completion"),
    Layout("Alpaca", prompt="instruction", input="input", response="output"),
    Layout("Dolly", prompt="instruction", input="context", response="response"),
    Layout("question and answer", prompt="question", response="answer"),
    Layout("Orca", prompt="question", response="response"),
)


@dataclass(frozen=True)
class TuningRecord:
    """Holds an example or a pair before it is rendered."""

    conversations: tuple[Conversation, ...]
    """One of an example; of a pair the chosen and the rejected one, which begin alike."""
    plain: LabelledText | None = None
    """The text of an example without a chat template, which has no conversation."""
    layout: str = ""
    """What the record was recognized as; empty for the forms of the reference."""
    unused_fields: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RecordParts:
    """Holds what a record says besides its messages, and what became of its fields."""

    variables: JsonObject = field(default_factory=dict)
    """What the chat template gets: tools, documents and others."""
    unused_fields: frozenset[str] = frozenset()
    """Fields that nothing is learned from, and that are not known to be without meaning."""


def layout_of(record: JsonObject, names: FieldNames, accepted: str) -> Layout:
    """Return the layout of an example.

    Args:
        record: as it was read.
        names: the user's own names; with any of them nothing is guessed.
        accepted: describes an example, for errors.

    Raises:
        RecordError: none fits, or several do.
    """
    if names.messages or names.prompt or names.response or names.input:
        own = Layout(
            "fields",
            messages=names.messages or "",
            prompt="" if names.messages else names.prompt or "prompt",
            response="" if names.messages else names.response or "response",
            input=names.input or "",
        )
        if own.fits(record):
            return own
        missing = next(name for name in own.fields if name != own.input and record.get(name) is None)
        raise RecordError(missing_field(record, missing, accepted))
    fitting = [layout for layout in LAYOUTS if layout.fits(record)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise RecordError(_nearly_fitting(record) + missing_field(record, "", accepted))
    fitting_fields = " and ".join(dict.fromkeys(" + ".join(layout.fields) for layout in fitting))
    raise RecordError(
        f"its fields fit several formats ({fitting_fields}); say with `fields` which of them to read"
    )


def missing_field(record: JsonObject, name: str, accepted: str) -> str:
    """Return what is wrong with a record that lacks a field; without a name: that fits no format."""
    fields = ", ".join(list(record)[:_MAX_SHOWN_FIELDS]) or "none"
    if not name:
        return f"its fields are {fields}; {accepted}, or name its fields with `fields`"
    if name in record:
        return f"field {name!r} is empty; {accepted}"
    return f"no field {name!r} (its fields are {fields}); {accepted}"


def _nearly_fitting(record: JsonObject) -> str:
    """Return which field the nearest layouts miss, as the beginning of a message; empty where none is near."""
    if record.get("chosen") is not None and record.get("rejected") is not None:
        return "it is a pair of answers, which belongs to spec.preference.data; "
    lower = {name.lower(): name for name in record}
    for layout in LAYOUTS:
        required = (layout.messages,) if layout.messages else (layout.prompt, layout.response)
        written = [f"{lower[name]!r} for {name!r}" for name in required if lower.get(name, name) != name]
        if written and all(name in lower for name in required):
            return f"it has {', '.join(written)}, and names are compared with their case; "
    # With the prompt or the response alone; of those the ones with the most fields, as `input` tells Alpaca from Dolly.
    near = [
        layout
        for layout in LAYOUTS
        if not layout.messages and (layout.prompt in record or layout.response in record)
    ]
    most = max((sum(name in record for name in layout.fields) for layout in near), default=0)
    near = [layout for layout in near if sum(name in record for name in layout.fields) == most]
    missing = dict.fromkeys(
        name for layout in near for name in (layout.prompt, layout.response) if record.get(name) is None
    )
    if not missing:
        return ""
    verb = "is empty" if all(name in record for name in missing) else "is missing"
    return f"field {' or '.join(map(repr, missing))} {verb}; "


def joined_prompt(record: JsonObject, layout: Layout) -> object:
    """Return the prompt, with the input after an empty line where there is one.

    Raises:
        RecordError: there is an input and one of the two is no text.
    """
    prompt, addition = record.get(layout.prompt), record.get(layout.input) if layout.input else None
    if is_empty(addition) or (isinstance(addition, str) and not addition.strip()):
        return prompt
    if not isinstance(prompt, str) or not isinstance(addition, str):
        raise RecordError(
            f"fields {layout.prompt!r} and {layout.input!r} are not both texts, so they cannot be joined"
        )
    return f"{prompt}\n\n{addition}"


def messages_of(value: object, key: str, role: str, names: FieldNames) -> Messages:
    """Return the messages of a field that may hold a text or messages.

    Raises:
        RecordError: it holds neither, or no text.
    """
    if isinstance(value, str):
        if not value.strip():
            raise RecordError(f"field {key!r} is empty")
        return (
            text_message(role, value) if not is_list_of_messages(value) else read_messages(value, key, names)
        )
    if not isinstance(value, dict) and not (isinstance(value, list) and any(map(_is_object, value))):
        raise RecordError(f"field {key!r} is neither a text nor a list of messages")
    return read_messages(value, key, names)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def with_system(messages: Messages, record: JsonObject, names: FieldNames) -> tuple[Messages, set[str]]:
    """Return the messages with the record's system text at the beginning, and the fields that hold one.

    Raises:
        RecordError: the text differs from the system message that is there already.
    """
    fields = {name for name in (names.system, *_SYSTEM_FIELDS) if name and not is_empty(record.get(name))}
    for name in sorted(fields, key=lambda name: name != names.system):
        text = record[name]
        if not isinstance(text, str):
            raise RecordError(f"field {name!r} is not a text")
        if not text.strip():
            continue
        first = messages.messages[0]
        if first["role"] != "system":
            messages = messages.after(text_message("system", text))
        elif first["content"] != text:
            raise RecordError(
                f"field {name!r} differs from the system message of the same record; keep one of them"
            )
    return messages, fields


def parts_of(record: JsonObject, used: set[str], names: FieldNames) -> RecordParts:
    """Return the rest of a record: what its chat template gets, and what is not used.

    Args:
        record: as it was read.
        used: fields that the messages were made of.
        names: the user's own names.

    Raises:
        RecordError: a field says something that cannot be honoured.
    """
    variables: JsonObject = {}
    unused = set()
    for name, value in record.items():
        if name in used or is_empty(value) or name in _IGNORED_OF_RECORDS:
            continue
        if name == (names.tools or "tools"):
            variables["tools"] = list(read_tools(value, name))
        elif name == "documents" and isinstance(value, list):
            variables[name] = value
        elif name == "chat_template_kwargs" and isinstance(value, dict):
            variables |= _template_variables(value)
        elif name in ("weight", "train"):
            if not read_weight(value, f"field {name!r}"):
                raise RecordError(f"field {name!r} is 0: nothing of the record is learned; remove the record")
        elif name in JUDGEMENTS and isinstance(value, bool):
            raise RecordError(f"field {name!r} judges the answer, which is not honoured; remove the field")
        elif name in _MEANINGFUL:
            raise RecordError(
                f"field {name!r} would change the example and is not used; map it with `fields`, or remove it"
            )
        else:
            unused.add(name)
    return RecordParts(variables, frozenset(unused))


def _template_variables(given: JsonObject) -> JsonObject:
    """Return what a record passes to the chat template besides its messages.

    Raises:
        RecordError: it would replace what the record or the tokenizer says.
    """
    for name in given:
        if name in _RESERVED_VARIABLES or name in TOKEN_NAMES:
            raise RecordError(
                f"field 'chat_template_kwargs' has {name!r}, which the template gets from the record or the tokenizer; "
                "remove it"
            )
    return {name: value for name, value in given.items() if value is not None}


def reasoning_of(record: JsonObject, messages: Messages) -> tuple[Messages, set[str]]:
    """Return the answer with the record's reasoning, and the field that holds it.

    Raises:
        RecordError: the reasoning is not a text, or stands beside several messages.
    """
    names = [name for name in REASONING_FIELDS if not is_empty(record.get(name))]
    if not names:
        return messages, set()
    text = record[names[0]]
    if len(names) > 1 or not isinstance(text, str) or len(messages.messages) != 1:
        raise RecordError(f"field {names[0]!r} must be the one text of reasoning before one answer")
    answer = messages.messages[0] | {names[0]: text}
    return Messages([answer], messages.weights, [*messages.checked_fields, (0, names[0])]), set(names)
