"""Reads examples and preference pairs, checks them one by one, and brings them into one form.

A pair may have its prompt in a field of its own; `chosen` and `rejected` may also begin with the prompt's messages, or
hold a whole dialogue as text ("Human: ... Assistant: ..."): the prompt is then taken off them, as TRL does.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dapt_contract.base import JsonObject
from dapt_contract.stages.tuning_data import FieldNames, InstructionSource, PreferenceInput
from dapt_trainer.data.chat.rendering import Conversation, LabelledText, Message
from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.checked_records import CheckedSource, LocatedRecord, read_checked
from dapt_trainer.data.items.messages import Messages, RecordError, is_empty, read_messages, text_message
from dapt_trainer.data.items.record_formats import (
    Layout,
    joined_prompt,
    layout_of,
    messages_of,
    missing_field,
    parts_of,
    reasoning_of,
    with_system,
)
from dapt_trainer.data.text import WordHasher, normalized, words

ACCEPTED_CHAT = (
    'an example is {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]} or '
    '{"prompt": text, "response": text}'
)
ACCEPTED_PLAIN = 'an example is {"prompt": text, "response": text}'
ACCEPTED_PAIR = (
    'a pair is {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}'
)
_PROMPT_FIELDS = ("prompt", "question", "instruction")
_DIALOGUE_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]?")
_DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}

Beat = Callable[[], None]


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


Record = TypeVar("Record", bound=LocatedRecord[TuningRecord])


def read_instructions(
    source: InstructionSource, field: str, problems: Problems, beat: Beat = lambda: None
) -> CheckedSource[TuningRecord]:
    """Read the examples of one source; its bad records are in the result, and are not reported yet."""
    names = source.fields or FieldNames()
    read = _plain_example if source.format == "plain" else _chat_example
    return read_checked(source.source, field, problems, _checking(read, names), beat)


def read_preferences(
    source: PreferenceInput, field: str, problems: Problems, beat: Beat = lambda: None
) -> CheckedSource[TuningRecord]:
    """Read the pairs of one source; its bad records are in the result, and are not reported yet."""
    names = source.fields or FieldNames()
    return read_checked(source.source, field, problems, _checking(_pair, names), beat)


def text_of(record: TuningRecord) -> str:
    """Return all text of an example or a pair, one message after the other on lines of their own."""
    if record.plain is not None:
        (start, _), text = record.plain.responses[0], record.plain.text
        return f"{text[:start]}\n{text[start:]}"
    return "\n".join(
        text
        for conversation in record.conversations
        for message in conversation.messages
        for text in _texts_of(message)
    )


def without_repeats(records: Iterable[Record], seen: set[str]) -> tuple[list[Record], int]:
    """Return the pairs whose normalized content appears for the first time, and how many others there were.

    Args:
        records: of one source.
        seen: contents of earlier sources, read and added to.
    """
    kept: list[Record] = []
    repeats = 0
    for record in records:
        content = [_normalized(conversation.messages) for conversation in record.value.conversations]
        key = json.dumps(content, sort_keys=True, ensure_ascii=True)
        if key in seen:
            repeats += 1
        else:
            seen.add(key)
            kept.append(record)
    return kept, repeats


def without_items(records: Sequence[Record], index: ContaminationIndex) -> tuple[list[Record], int]:
    """Return the records that contain no evaluation item, and how many do."""
    if not index.lengths:
        return list(records), 0
    hasher = WordHasher()
    kept = []
    for record in records:
        text_words = words(normalized(text_of(record.value)))
        ngrams = hasher.ngrams(hasher.hashes(text_words), index.lengths)
        if index.find(ngrams, np.array([len(text_words)], dtype=np.int64))[0] < 0:
            kept.append(record)
    return kept, len(records) - len(kept)


def _checking(
    read: Callable[[JsonObject, FieldNames], TuningRecord], names: FieldNames
) -> Callable[[JsonObject], TuningRecord | str]:
    def check(record: JsonObject) -> TuningRecord | str:
        try:
            return read(record, names)
        except RecordError as error:
            return str(error)

    return check


def _chat_example(record: JsonObject, names: FieldNames) -> TuningRecord:
    layout = layout_of(record, names, ACCEPTED_CHAT)
    used = set(layout.fields)
    if layout.messages:
        messages = read_messages(record[layout.messages], layout.messages, names)
        # Some data sets repeat the first question in a field of its own.
        if record.get("prompt") in [message["content"] for message in messages.messages]:
            used.add("prompt")
    else:
        prompt = messages_of(joined_prompt(record, layout), layout.prompt, "user", names)
        answer = messages_of(record[layout.response], layout.response, "assistant", names)
        answer, reasoning = reasoning_of(record, answer)
        messages, used = answer.after(prompt), used | reasoning
    messages, system = with_system(messages, record, names)
    parts = parts_of(record, used | system, names)
    roles = [message["role"] for message in messages.messages]
    if roles[-1] != "assistant":
        raise RecordError(
            f"the last message is by {roles[-1]!r}; it must be the assistant's response, which is learned"
        )
    if "user" not in roles:
        raise RecordError("no message is by 'user'; a response answers a user")
    learned = _learned(messages, 0)
    if not learned:
        raise RecordError(
            "the weight of each of the assistant's messages is 0: nothing is learned; remove the record"
        )
    last = learned[-1] + 1
    checked = [(index, name) for index, name in messages.checked_fields if index < last]
    conversation = Conversation(messages.messages[:last], learned, parts.variables, checked)
    return TuningRecord((conversation,), None, _shown(layout), parts.unused_fields)


def _plain_example(record: JsonObject, names: FieldNames) -> TuningRecord:
    layout = layout_of(record, names, ACCEPTED_PLAIN)
    if layout.messages:
        raise RecordError(
            f"field {layout.messages!r} holds messages, but plain text is read; {ACCEPTED_PLAIN}"
        )
    prompt, response = joined_prompt(record, layout), record[layout.response]
    for name, text in ((layout.prompt, prompt), (layout.response, response)):
        if not isinstance(text, str) or not text.strip():
            raise RecordError(f"field {name!r} is empty or no text; {ACCEPTED_PLAIN}")
    parts = parts_of(record, set(layout.fields), names)
    if parts.variables:
        raise RecordError(
            f"field {next(iter(parts.variables))!r} needs a chat template, which `format: plain` has not"
        )
    prompt, response = str(prompt), str(response)
    text = LabelledText(prompt + response, ((len(prompt), len(prompt) + len(response)),), is_plain=True)
    return TuningRecord((), text, _shown(layout), parts.unused_fields)


def _pair(record: JsonObject, names: FieldNames) -> TuningRecord:
    # 1. Bring each part into the form of a list of messages.
    record, used = _without_nesting(record), set[str]()
    chosen_name = names.chosen or ("chosen" if "chosen" in record else "preferred_output")
    rejected_name = names.rejected or ("rejected" if "rejected" in record else "non_preferred_output")
    if chosen_name not in record and names.chosen is None:
        chosen_name = "chosen"
    if rejected_name not in record and names.rejected is None:
        rejected_name = "rejected"
    answers = []
    for name in (chosen_name, rejected_name):
        if is_empty(record.get(name)):
            raise RecordError(missing_field(record, name, ACCEPTED_PAIR))
        answers.append(_dialogue(record[name]) or messages_of(record[name], name, "assistant", names))
        used.add(name)
    chosen, rejected = answers
    # 2. Find the prompt, which may stand in both answers instead of in a field of its own.
    prompt, prompt_fields = _prompt(record, names)
    used |= prompt_fields
    if prompt is None:
        prompt = Messages(_shared_beginning(chosen.messages, rejected.messages))
    if not prompt.messages:
        raise RecordError(
            f"its fields are {', '.join(record)}, none is a prompt, and {chosen_name!r} and {rejected_name!r} do not "
            f"begin alike; {ACCEPTED_PAIR}, or name its fields with `fields`"
        )
    # A whole conversation as `messages` next to the pair must be the chosen one.
    if "messages" not in used and not is_empty(record.get("messages")):
        whole = read_messages(record["messages"], "messages", names)
        if whole.messages in (chosen.messages, [*prompt.messages, *chosen.messages]):
            used.add("messages")
    if prompt.messages[-1]["role"] not in ("user", "tool"):
        raise RecordError(
            f"the prompt ends with a message by {prompt.messages[-1]['role']!r}; it must end with the user's"
        )
    # 3. What is left of each must be an answer, and the two must differ.
    chosen, rejected = _without(prompt, chosen), _without(prompt, rejected)
    for name, answer in ((chosen_name, chosen), (rejected_name, rejected)):
        _check_answer(name, answer)
    if _normalized(chosen.messages) == _normalized(rejected.messages):
        raise RecordError(
            f"{chosen_name!r} and {rejected_name!r} have the same text; a pair needs two different answers"
        )
    # 4. Both are learned after the same prompt, with the same tools.
    prompt, system = with_system(prompt, record, names)
    parts = parts_of(record, used | system, names)
    conversations = tuple(
        Conversation(
            whole.messages, _learned(whole, len(prompt.messages)), parts.variables, whole.checked_fields
        )
        for whole in (chosen.after(prompt), rejected.after(prompt))
    )
    is_usual = prompt_fields <= {"prompt"} and chosen_name == "chosen" and names == FieldNames()
    pair_fields = [*sorted(prompt_fields & record.keys()), chosen_name, rejected_name]
    layout = "" if is_usual else f"pairs ({', '.join(pair_fields)})"
    return TuningRecord(conversations, None, layout, parts.unused_fields)


def _prompt(record: JsonObject, names: FieldNames) -> tuple[Messages | None, set[str]]:
    """Return the prompt of a pair and the fields that it was made of; None where it has no field of its own."""
    name = names.messages or names.prompt
    if name is not None:
        if is_empty(record.get(name)):
            raise RecordError(missing_field(record, name, ACCEPTED_PAIR))
    else:
        fitting = [field for field in _PROMPT_FIELDS if not is_empty(record.get(field))]
        if len(fitting) > 1:
            raise RecordError(
                f"{' and '.join(map(repr, fitting))} may each be the prompt; say which with `fields`"
            )
        others = [field for field in ("conversations", "input") if not is_empty(record.get(field))]
        name = next(iter([*fitting, *others]), None)
        if name is None:
            if "prompt" in record:
                raise RecordError(f"field 'prompt' is empty; {ACCEPTED_PAIR}")
            return None, set()
    addition = names.input or ("input" if name == "instruction" else "")
    layout = Layout("", prompt=name, input=addition)
    value = joined_prompt(record, layout)
    messages = _dialogue(value) or messages_of(value, name, "user", names)
    return messages, set(layout.fields)


def _without_nesting(record: JsonObject) -> JsonObject:
    """Return a record of OpenAI's preference files, whose input is an object, in the form of all others."""
    inner = record.get("input")
    if not isinstance(inner, dict) or "messages" not in inner:
        return record
    outer = {name: value for name, value in record.items() if name != "input"}
    return outer | {("prompt" if name == "messages" else name): value for name, value in inner.items()}


def _dialogue(value: object) -> Messages | None:
    """Return the messages of a text that is a whole dialogue, as Anthropic's HH-RLHF writes it."""
    if not isinstance(value, str) or not value.startswith("\n\nHuman:") or "\n\nAssistant:" not in value:
        return None
    pieces = _DIALOGUE_TURN.split(value.strip())
    messages = Messages([])
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        messages = text_message(_DIALOGUE_ROLES[name], text.strip()).after(messages)
    # A prompt ends where the assistant's answer begins.
    if messages.messages and messages.messages[-1] == {"role": "assistant", "content": ""}:
        messages.messages.pop()
    return messages


def _check_answer(name: str, answer: Messages) -> None:
    for index, verb in ((0, "begin"), (-1, "end")):
        author = f"by {answer.messages[index]['role']!r}" if answer.messages else "none after the prompt"
        if author != "by 'assistant'":
            raise RecordError(f"{name!r} must {verb} with the assistant's message, it is {author}")
    if any(not message["content"] and len(message) == 2 for message in answer.messages):
        raise RecordError(f"{name!r} has an empty message")
    if not all(answer.weights.values()):
        raise RecordError(
            f"{name!r} has a message of weight 0, but all of an answer is compared; remove the weight"
        )


def _learned(messages: Messages, first: int) -> list[int]:
    """Return the indices of the assistant's messages that are learned, from the message `first` on."""
    return [
        index
        for index, message in enumerate(messages.messages)
        if index >= first and message["role"] == "assistant" and messages.weights.get(index, True)
    ]


def _shared_beginning(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return the messages that both begin with, up to the last one by the user or a tool."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = [message for message, _ in pairs]
    while shared and shared[-1]["role"] == "assistant":
        shared.pop()
    return shared


def _without(prompt: Messages, answer: Messages) -> Messages:
    """Return an answer without the prompt's messages, which it may begin with."""
    count = len(prompt.messages)
    if answer.messages[:count] != prompt.messages:
        return answer
    return Messages(
        answer.messages[count:],
        {index - count: learned for index, learned in answer.weights.items() if index >= count},
        [(index - count, name) for index, name in answer.checked_fields if index >= count],
    )


def _normalized(messages: Sequence[Message]) -> list[list[str]]:
    return [[str(message["role"]), *map(normalized, _texts_of(message))] for message in messages]


def _texts_of(message: Message) -> list[str]:
    """Return what a message says: its text, and each other field but the role as a text."""
    return [
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        for name, value in message.items()
        if name != "role" and value is not None
    ]


def _shown(layout: Layout) -> str:
    return f"{layout.name} ({', '.join(layout.fields)})" if layout.name not in ("", "fields") else ""
