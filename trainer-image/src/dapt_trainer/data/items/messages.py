"""Reads the messages of a conversation as people write them, and brings them into the form that templates expect.

Every field that can change what the model reads or learns is used: it goes to the chat template, which must use it
(`chat/rendering.py` checks that), it decides what is learned (`weight`, `train`), or the record is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dapt_contract.base import JsonObject
from dapt_contract.stages.tuning_data import FieldNames
from dapt_trainer.data.chat.rendering import Message
from dapt_trainer.data.reading.documents import is_unicode, strict_json
from dapt_trainer.data.text import normalized

ROLES = ("system", "user", "assistant", "tool")
KNOWN_ROLES = {"human": "user", "gpt": "assistant", "developer": "system", "observation": "tool"} | {
    role: role for role in ROLES
}
"""Roles of ShareGPT and OpenAI -> the role that templates know."""
IGNORED_FIELDS = frozenset(
    {
        "country", "created", "created_at", "hash", "hashed_ip", "header", "id", "idx", "index", "lang", "language",
        "model", "num_tokens", "rank", "rating", "redacted", "score", "source", "state", "timestamp", "tokens", "toxic",
        "turn_identifier", "url", "uuid",
    }
)  # fmt: skip
"""Fields of messages and records that say where a text is from or how good it is; no model reads them."""
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_MEDIA = frozenset({"image", "images", "audio", "audios", "video", "videos", "file", "files"})
_OLD_FUNCTIONS = frozenset({"function_call", "functions"})
_MESSAGE_FIELDS = (frozenset({"role", "content"}), frozenset({"from", "value"}))
_CALL_ROLES = frozenset({"function_call", "tool_call"})
"""Roles of ShareGPT's messages whose text is a call, or several, as JSON."""
_ACCEPTED_ROLES = (*ROLES, *sorted(KNOWN_ROLES.keys() - set(ROLES)), *sorted(_CALL_ROLES))
_DIALOGUE_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]?")
_DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}
_LINKS = frozenset({"tool_call_id"})
"""Fields that tie messages together; a template may do without them, since the order says the same."""


class RecordError(ValueError):
    """Reports that a record cannot be learned from; the message names its field, not its place."""


@dataclass(frozen=True)
class Messages:
    """Holds messages as templates expect them, and what is known of them besides."""

    messages: list[Message]
    weights: dict[int, bool] = field(default_factory=dict)
    """Whether a message of the assistant's is learned, where the record says so."""
    checked_fields: list[tuple[int, str]] = field(default_factory=list)
    """(index of a message, field) that the template must use."""

    def after(self, earlier: Messages) -> Messages:
        """Return the messages of both, the earlier ones first."""
        count = len(earlier.messages)
        return Messages(
            [*earlier.messages, *self.messages],
            earlier.weights | {count + index: learned for index, learned in self.weights.items()},
            [*earlier.checked_fields, *((count + index, name) for index, name in self.checked_fields)],
        )


def text_message(role: str, text: str) -> Messages:
    """Return one message of plain text."""
    return Messages([{"role": role, "content": text}])


def read_messages(value: object, key: str, names: FieldNames) -> Messages:
    """Return the messages of a list.

    Args:
        value: as the record has it.
        key: the record's field, for errors.
        names: the user's own names of fields and roles.

    Raises:
        RecordError: one of them cannot be learned from.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value, key)  # tables often hold lists as JSON text
    entries = [value] if isinstance(value, dict) else value
    if not isinstance(entries, list) or not entries:
        raise RecordError(f"field {key!r} is no list of messages")
    result = Messages([])
    for number, entry in enumerate(entries):
        place = f"{key}[{number}]"
        if not isinstance(entry, dict):
            raise RecordError(f"{place} is not an object with role and content")
        result = _message(entry, place, names).after(result)
    return result


def dialogue_of(value: object) -> Messages | None:
    """Return the messages of a text that is a whole dialogue, as Anthropic's HH-RLHF writes it; None for others."""
    text = value.replace("\r\n", "\n").strip() if isinstance(value, str) else ""
    if not text.startswith("Human:") or "\n\nAssistant:" not in text:
        return None
    pieces = _DIALOGUE_TURN.split(text)
    messages = Messages([])
    for name, turn in zip(pieces[1::2], pieces[2::2], strict=True):
        messages = text_message(_DIALOGUE_ROLES[name], turn.strip()).after(messages)
    # A prompt ends where the assistant's answer begins.
    if messages.messages and messages.messages[-1] == {"role": "assistant", "content": ""}:
        messages.messages.pop()
    return messages


def learned_messages(messages: Messages, first: int) -> list[int]:
    """Return the indices of the assistant's messages that are learned, from the message `first` on."""
    return [
        index
        for index, message in enumerate(messages.messages)
        if index >= first and message["role"] == "assistant" and messages.weights.get(index, True)
    ]


def normalized_messages(messages: Sequence[Message]) -> list[list[str]]:
    """Return roles and texts in the form in which conversations are compared."""
    return [[str(message["role"]), *map(normalized, texts_of(message))] for message in messages]


def texts_of(message: Message) -> list[str]:
    """Return what a message says: its text, and each other field but the role as a text."""
    return [
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        for name, value in message.items()
        if name != "role" and value is not None
    ]


def is_list_of_messages(text: str) -> bool:
    """Return whether a text is a list of messages written as JSON, as tables often hold it."""
    if not text.lstrip().startswith("["):
        return False
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(entries) and all(
        isinstance(entry, dict) and any(names <= entry.keys() for names in _MESSAGE_FIELDS)
        for entry in entries
    )


def is_empty(value: object) -> bool:
    """Return whether a field says nothing: tables fill the fields that a record does not have."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def read_weight(value: object, place: str) -> bool:
    """Return whether what a weight belongs to is learned.

    Raises:
        RecordError: the weight is neither 0 nor 1.
    """
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise RecordError(f"{place} is {value!r}; accepted are 0 (context alone) and 1 (learned)")


def read_tools(value: object, key: str) -> list[JsonObject]:
    """Return the tools of a record, which many data sets hold as JSON text.

    Raises:
        RecordError: it is no list of objects.
    """
    tools = _parsed(value, key) if isinstance(value, str) else value
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordError(f"field {key!r} is no list of tools, each an object with its JSON schema")
    return list(tools)


def _message(entry: JsonObject, place: str, names: FieldNames) -> Messages:
    role_key = names.role or ("role" if "role" in entry or "from" not in entry else "from")
    content_key = names.content or ("content" if "content" in entry or "value" not in entry else "value")
    author = entry.get(role_key)
    if isinstance(author, str) and author in _CALL_ROLES and author not in names.roles:
        calls = _tool_calls(entry.get(content_key), f"{place}.{content_key}")
        others = {name: value for name, value in entry.items() if name != content_key}
        entry = others | {role_key: "assistant", "tool_calls": list(calls)}
    role = _role(entry.get(role_key), f"{place}.{role_key}", names)
    message: Message = {"role": role}
    result = Messages([message])
    for name, value in entry.items():
        if name in (role_key, content_key) or is_empty(value) or name in IGNORED_FIELDS:
            continue
        _add_field(result, name, value, f"{place}.{name}")
    message["content"] = _content(entry.get(content_key), f"{place}.{content_key}", message)
    return result


def _role(value: object, place: str, names: FieldNames) -> str:
    role = names.roles.get(value) if isinstance(value, str) else None
    role = role or (KNOWN_ROLES.get(value) if isinstance(value, str) else None)
    if role is None:
        raise RecordError(
            f"{place} is {value!r}; accepted are {', '.join(_ACCEPTED_ROLES)}: map other names with"
            " `fields: {roles: ...}`"
        )
    return role


def _add_field(result: Messages, name: str, value: object, place: str) -> None:
    """Add a field of a message, besides role and content."""
    message = result.messages[0]
    by_assistant = message["role"] == "assistant"
    if name in ("weight", "train"):
        is_learned = read_weight(value, place)
        if is_learned and not by_assistant:
            raise RecordError(
                f"{place} asks to learn a message by {message['role']!r}; only the assistant's are"
            )
        if by_assistant:
            result.weights[0] = is_learned and result.weights.get(0, True)
    elif name in _MEDIA:
        raise RecordError(f"{place} holds what is no text; only text is learned from")
    elif name in _OLD_FUNCTIONS:
        raise RecordError(f"{place} is OpenAI's old form of a tool call; write it as tool_calls")
    elif name == "tool_calls":
        if not by_assistant:
            raise RecordError(
                f"{place} stands in a message by {message['role']!r}; only the assistant calls tools"
            )
        message[name] = list(_tool_calls(value, place))
        result.checked_fields.append((0, name))
    elif name in REASONING_FIELDS:
        if not isinstance(value, str):
            raise RecordError(f"{place} is not a text")
        if not by_assistant:
            raise RecordError(
                f"{place} stands in a message by {message['role']!r}; only the assistant reasons"
            )
        others = [other for other in REASONING_FIELDS if message.get(other, value) != value]
        if others:
            raise RecordError(f"{place} differs from {others[0]} of the same message; keep one of them")
        if not any(other in message for other in REASONING_FIELDS):
            message[name] = value
            result.checked_fields.append((0, name))
    else:
        message[name] = value  # type: ignore[assignment] # JSON, as it was read
        is_link = name in _LINKS or (name == "name" and message["role"] == "tool")
        if not is_link:
            result.checked_fields.append((0, name))


def _content(value: object, place: str, message: Message) -> str | None:
    """Return the text of a message; None for a null that the template decides about."""
    if isinstance(value, list):
        value = _text_of_parts(value, place)
    says_more = any(name in message for name in ("tool_calls", *REASONING_FIELDS))
    if value is None and says_more:
        return None
    if isinstance(value, str) and (value.strip() or says_more or message["role"] in ("system", "tool")):
        return value
    what = "null" if value is None else "empty" if isinstance(value, str) else "not a text"
    raise RecordError(f"{place} is {what}; a message needs a text, a list of text parts, or tool_calls")


def _text_of_parts(parts: list[object], place: str) -> str:
    texts = []
    for number, part in enumerate(parts):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in ("text", "input_text", "output_text"):
            raise RecordError(f"{place}[{number}] is of type {kind!r}; only text is learned from")
        if not isinstance(text, str):
            raise RecordError(f'{place}[{number}] is no text; a part is {{"type": "text", "text": text}}')
        texts.append(text)
    return "\n".join(texts)


def _tool_calls(value: object, place: str) -> list[JsonObject]:
    calls = _parsed(value, place) if isinstance(value, str) else value
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise RecordError(f"{place} is no list of calls")
    return [_tool_call(call, f"{place}[{number}]") for number, call in enumerate(calls)]


def _tool_call(call: object, place: str) -> JsonObject:
    if not isinstance(call, dict):
        raise RecordError(f"{place} is no object with a function")
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError(
            f'{place} names no function; a call is {{"function": {{"name": text, "arguments": object}}}}'
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # Templates write arguments as JSON; a text would be written as JSON of a JSON text.
        arguments = _parsed(arguments or "{}", f"{place}.arguments")
    if arguments is not None and not isinstance(arguments, dict):
        raise RecordError(f"{place}.arguments is no object")
    named = function if arguments is None else function | {"arguments": arguments}
    return call | {"function": named} if "function" in call else {"type": "function", "function": named}


def _parsed(text: str, place: str) -> object:
    try:
        value = strict_json(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place} is not JSON ({error})") from error
    # The record was read as Unicode, but an escape within its text is decoded only here.
    if not is_unicode(value):
        raise RecordError(f"{place} is not Unicode text (half of a surrogate pair)")
    return value
