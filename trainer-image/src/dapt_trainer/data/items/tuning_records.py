"""Reads examples and preference pairs, checks them one by one, and brings them into one form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from dapt_contract.base import JsonObject
from dapt_contract.stages.tuning_data import FieldNames, InstructionSource, PreferenceInput
from dapt_trainer.data.chat.rendering import Conversation, LabelledText
from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.checked_records import CheckedSource, LocatedRecord, read_checked
from dapt_trainer.data.items.messages import (
    RecordError,
    dialogue_of,
    learned_messages,
    normalized_messages,
    read_messages,
    texts_of,
)
from dapt_trainer.data.items.pair_records import read_pair
from dapt_trainer.data.items.record_formats import (
    Layout,
    TuningRecord,
    joined_prompt,
    layout_of,
    messages_of,
    parts_of,
    reasoning_of,
    with_system,
)
from dapt_trainer.data.text import WordHasher, normalized, words

__all__ = [
    "TuningRecord",
    "read_instructions",
    "read_preferences",
    "text_of",
    "without_items",
    "without_repeats",
]

ACCEPTED_CHAT = (
    'an example is {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]} or '
    '{"prompt": text, "response": text}'
)
ACCEPTED_PLAIN = 'an example is {"prompt": text, "response": text}'
Beat = Callable[[], None]


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
    return read_checked(source.source, field, problems, _checking(read_pair, names), beat)


def text_of(record: TuningRecord) -> str:
    """Return all text of an example or a pair, one message after the other on lines of their own."""
    if record.plain is not None:
        (start, _), text = record.plain.responses[0], record.plain.text
        return f"{text[:start]}\n{text[start:]}"
    return "\n".join(
        text
        for conversation in record.conversations
        for message in conversation.messages
        for text in texts_of(message)
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
        content = [normalized_messages(conversation.messages) for conversation in record.value.conversations]
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
        text, response = joined_prompt(record, layout), record[layout.response]
        dialogue = dialogue_of(text)
        prompt = dialogue or messages_of(text, layout.prompt, "user", names)
        if dialogue and isinstance(response, str):
            response = response.strip()  # the space between "Assistant:" and what it says
        answer = messages_of(response, layout.response, "assistant", names)
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
    learned = learned_messages(messages, 0)
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


def _shown(layout: Layout) -> str:
    return f"{layout.name} ({', '.join(layout.fields)})" if layout.name not in ("", "fields") else ""
