"""Reads SFT examples and preference pairs, checks them line by line, and writes them in one form each.

    instructions/train.jsonl    {"messages": [{"role": str, "content": str}, ...]}, the last by the assistant
                                {"plain": true, "messages": [user, assistant]}: prompt and response as they are,
                                without a chat template between them (format `plain`)
    preferences/train.jsonl     {"prompt": [messages], "chosen": [messages], "rejected": [messages]}

A preference source may write each of the three as a text or as a list of messages. `chosen` and `rejected` may begin
with the prompt's messages, also instead of a field `prompt`: the prompt is then taken off them, as TRL does.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dapt_contract.base import JsonObject
from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.json_lines import DataSet, missing_text, read_checked
from dapt_trainer.data.text import WordHasher, normalized, words

_ROLES = ("system", "user", "assistant", "tool")
_PAIR = '{"prompt": text, "response": text}'
_PREFERENCE = (
    'a pair is {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}'
)
_MESSAGES = (
    'an example is {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}'
)

Message = dict[str, str]
"""`role` and `content`."""
TuningRecord = dict[str, bool | list[Message]]
"""An example or a pair as it is written; `plain` alone is a boolean."""


def read_instructions(uri: str, form: str, field: str, problems: Problems) -> DataSet[TuningRecord]:
    """Read the SFT examples of one source, and report what is wrong with them line by line.

    Args:
        uri: of JSON lines.
        form: `messages`, `promptResponse` or `plain`.
        field: the manifest's field, for messages.
        problems: gets the sentences.
    """
    checks: dict[str, Callable[[JsonObject], TuningRecord | str]] = {
        "messages": _checked_conversation,
        "promptResponse": _checked_pair,
        "plain": _checked_plain,
    }
    return read_checked(uri, field, problems, checks[form])


def read_preferences(uri: str, field: str, problems: Problems) -> DataSet[TuningRecord]:
    """Read the preference pairs of one source, and report what is wrong with them line by line."""
    return read_checked(uri, field, problems, _checked_preference)


def text_of(record: TuningRecord) -> str:
    """Return the content of all messages of an example or a pair, one after the other on lines of their own."""
    contents = [
        message["content"] for value in record.values() if isinstance(value, list) for message in value
    ]
    return "\n".join(contents)


def without_repeats(records: Iterable[TuningRecord]) -> tuple[list[TuningRecord], int]:
    """Return the records whose normalized content appears for the first time, and how many others there were."""
    seen: set[str] = set()
    kept: list[TuningRecord] = []
    repeats = 0
    for record in records:
        content = {
            name: value if isinstance(value, bool) else _normalized(value) for name, value in record.items()
        }
        key = json.dumps(content, sort_keys=True, ensure_ascii=True)
        if key in seen:
            repeats += 1
        else:
            seen.add(key)
            kept.append(record)
    return kept, repeats


def without_items(
    records: Sequence[TuningRecord], index: ContaminationIndex
) -> tuple[list[TuningRecord], int]:
    """Return the records that contain no evaluation item, and how many do."""
    if not index.lengths:
        return list(records), 0
    hasher = WordHasher()
    kept = []
    for record in records:
        text_words = words(normalized(text_of(record)))
        ngrams = hasher.ngrams(hasher.hashes(text_words), index.lengths)
        if index.find(ngrams, np.array([len(text_words)], dtype=np.int64))[0] < 0:
            kept.append(record)
    return kept, len(records) - len(kept)


def _normalized(messages: list[Message]) -> list[list[str]]:
    return [[message["role"], normalized(message["content"])] for message in messages]


def _checked_conversation(record: JsonObject) -> TuningRecord | str:
    value = record.get("messages")
    if not isinstance(value, list) or not value:
        return f"{missing_text(record, 'messages')}; {_MESSAGES}"
    messages = _messages(value, "messages")
    if isinstance(messages, str):
        return messages
    if messages[-1]["role"] != "assistant":
        return f"the last message is by {messages[-1]['role']!r}; it must be the assistant's response, which is learned"
    if not any(message["role"] == "user" for message in messages):
        return "no message is by 'user'; a response answers a user"
    return {"messages": messages}


def _checked_pair(record: JsonObject) -> TuningRecord | str:
    messages = []
    for key, role in (("prompt", "user"), ("response", "assistant")):
        text = record.get(key)
        if not isinstance(text, str) or not text.strip():
            return f"{missing_text(record, key)}; an example is {_PAIR}"
        messages.append(_message(role, text))
    return {"messages": messages}


def _checked_plain(record: JsonObject) -> TuningRecord | str:
    checked = _checked_pair(record)
    return checked if isinstance(checked, str) else {"plain": True, **checked}


def _checked_preference(record: JsonObject) -> TuningRecord | str:
    # 1. Bring each part into the form of a list of messages.
    parts: dict[str, list[Message]] = {}
    for key, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        if key == "prompt" and key not in record:
            continue
        value = record.get(key)
        messages = _messages(value, key) if isinstance(value, list) and value else None
        if isinstance(value, str) and value.strip():
            messages = [_message(role, value)]
        if messages is None:
            return f"{missing_text(record, key)}; {_PREFERENCE}"
        if isinstance(messages, str):
            return messages
        parts[key] = messages
    # 2. Find the prompt, which may stand in both answers instead of in a field of its own.
    chosen, rejected = parts["chosen"], parts["rejected"]
    prompt = parts.get("prompt") or _shared_beginning(chosen, rejected)
    if not prompt:
        return (
            f"{missing_text(record, 'prompt')}, and 'chosen' and 'rejected' do not begin alike; {_PREFERENCE}"
        )
    if prompt[-1]["role"] not in ("user", "tool"):
        return f"the prompt ends with a message by {prompt[-1]['role']!r}; it must end with the user's"
    # 3. What is left of each must be an answer, and the two must differ.
    answers = {"chosen": _without(prompt, chosen), "rejected": _without(prompt, rejected)}
    for key, answer in answers.items():
        for index, verb in ((0, "begin"), (-1, "end")):
            author = f"by {answer[index]['role']!r}" if answer else "none after the prompt"
            if author != "by 'assistant'":
                return f"{key!r} must {verb} with the assistant's message, it is {author}"
    if _normalized(answers["chosen"]) == _normalized(answers["rejected"]):
        return "'chosen' and 'rejected' have the same text; a pair needs two different answers"
    return {"prompt": prompt, **answers}


def _messages(value: Sequence[object], key: str) -> list[Message] | str:
    messages = []
    for number, entry in enumerate(value):
        role = entry.get("role") if isinstance(entry, dict) else None
        content = entry.get("content") if isinstance(entry, dict) else None
        if role not in _ROLES:
            return f"{key}[{number}].role is {role!r}; accepted are {', '.join(_ROLES)}"
        if not isinstance(content, str) or not content.strip():
            return f"{key}[{number}].content is not a text; {_MESSAGES if key == 'messages' else _PREFERENCE}"
        messages.append(_message(role, content))
    return messages


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _shared_beginning(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return the messages that both begin with, up to the last one by the user or a tool."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = [message for message, _ in pairs]
    while shared and shared[-1]["role"] == "assistant":
        shared.pop()
    return shared


def _without(prompt: list[Message], answer: list[Message]) -> list[Message]:
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
