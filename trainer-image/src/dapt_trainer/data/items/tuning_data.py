"""SFT examples and preference pairs: read, checked line by line, written in one form each.

    instructions/train.jsonl    {"messages": [{"role": str, "content": str}, ...]}, the last by the assistant
                                {"plain": true, "messages": [user, assistant]}: prompt and response as they stand,
                                without a chat template between them (format `plain`)
    preferences/train.jsonl     {"prompt": [messages], "chosen": [messages], "rejected": [messages]}

A preference source may write each of the three as a text or as a list of messages. `chosen` and `rejected` may repeat
the prompt's messages at their beginning, or carry it alone (`prompt` left out): it is taken off them, as TRL does.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.json_lines import DataSet, missing, read_checked
from dapt_trainer.data.text import WordHasher, normalized, words

_ROLES = ("system", "user", "assistant", "tool")
_PAIR = '{"prompt": text, "response": text}'
_PREFERENCE = (
    'a pair is {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}'
)
_MESSAGES = (
    'an example is {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}'
)

Messages = list[dict[str, str]]


def read_instructions(uri: str, form: str, field: str, problems: Problems) -> DataSet:
    """SFT examples of one source; what is wrong with them is noted, line by line.

    Args:
        uri: of JSON lines.
        form: `messages`, `promptResponse` or `plain`.
        field: of the manifest, for messages.
        problems: gets the sentences.
    """
    checks = {"messages": _checked_conversation, "promptResponse": _checked_pair, "plain": _checked_plain}
    return read_checked(uri, field, problems, checks[form])


def read_preferences(uri: str, field: str, problems: Problems) -> DataSet:
    """Preference pairs of one source; what is wrong with them is noted, line by line."""
    return read_checked(uri, field, problems, _checked_preference)


def texts_of(line: dict[str, Any]) -> str:
    """All that an example or a pair says, its messages apart by a line."""
    contents = [message["content"] for key in line if key != "plain" for message in line[key]]
    return "\n".join(contents)


def without_repeats(lines: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The lines whose normalized content comes for the first time, and how many came again."""
    seen: set[str] = set()
    kept: list[dict[str, Any]] = []
    repeats = 0
    for line in lines:
        key = json.dumps(
            {name: _normalized(value) for name, value in line.items()}, sort_keys=True, ensure_ascii=True
        )
        if key in seen:
            repeats += 1
        else:
            seen.add(key)
            kept.append(line)
    return kept, repeats


def without_items(
    lines: Sequence[dict[str, Any]], index: ContaminationIndex
) -> tuple[list[dict[str, Any]], int]:
    """The lines that contain no evaluation item, and how many do."""
    if not index.lengths:
        return list(lines), 0
    hasher = WordHasher()
    kept = []
    for line in lines:
        text_words = words(normalized(texts_of(line)))
        ngrams = hasher.ngrams(hasher.hashes(text_words), index.lengths)
        if index.find(ngrams, np.array([len(text_words)], dtype=np.int64))[0] < 0:
            kept.append(line)
    return kept, len(lines) - len(kept)


def _normalized(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [[message["role"], normalized(message["content"])] for message in value]


def _checked_conversation(record: dict[str, Any]) -> dict[str, Any] | str:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        return f"{missing(record, 'messages')}; {_MESSAGES}"
    plain = _messages(messages, "messages")
    if isinstance(plain, str):
        return plain
    if plain[-1]["role"] != "assistant":
        return f"the last message is by {plain[-1]['role']!r}; it must be the assistant's response, which is learned"
    if not any(message["role"] == "user" for message in plain):
        return "no message is by 'user'; a response answers a user"
    return {"messages": plain}


def _checked_pair(record: dict[str, Any]) -> dict[str, Any] | str:
    for key in ("prompt", "response"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            return f"{missing(record, key)}; an example is {_PAIR}"
    return {"messages": [_message("user", record["prompt"]), _message("assistant", record["response"])]}


def _checked_plain(record: dict[str, Any]) -> dict[str, Any] | str:
    checked = _checked_pair(record)
    return checked if isinstance(checked, str) else {"plain": True} | checked


def _checked_preference(record: dict[str, Any]) -> dict[str, Any] | str:
    parts: dict[str, Messages] = {}
    for key, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        if key == "prompt" and key not in record:
            continue
        value = record.get(key)
        found = _messages(value, key) if isinstance(value, list) and value else None
        if isinstance(value, str) and value.strip():
            found = [_message(role, value)]
        if found is None:
            return f"{missing(record, key)}; {_PREFERENCE}"
        if isinstance(found, str):
            return found
        parts[key] = found
    chosen, rejected = parts["chosen"], parts["rejected"]
    prompt = parts.get("prompt") or _shared_beginning(chosen, rejected)
    if not prompt:
        return f"{missing(record, 'prompt')}, and 'chosen' and 'rejected' do not begin alike; {_PREFERENCE}"
    if prompt[-1]["role"] not in ("user", "tool"):
        return f"the prompt ends with a message by {prompt[-1]['role']!r}; it must end with the user's"
    answers = {"chosen": _without(prompt, chosen), "rejected": _without(prompt, rejected)}
    for key, answer in answers.items():
        for place, wanted in ((0, "begin"), (-1, "end")):
            by = f"by {answer[place]['role']!r}" if answer else "none after the prompt"
            if by != "by 'assistant'":
                return f"{key!r} must {wanted} with the assistant's message, it is {by}"
    if _normalized(answers["chosen"]) == _normalized(answers["rejected"]):
        return "'chosen' and 'rejected' say the same; a pair needs two different answers"
    return {"prompt": prompt, **answers}


def _messages(value: list[Any], key: str) -> Messages | str:
    plain = []
    for number, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in _ROLES:
            return f"{key}[{number}].role is {role!r}; accepted are {', '.join(_ROLES)}"
        if not isinstance(content, str) or not content.strip():
            return f"{key}[{number}].content is not a text; {_MESSAGES if key == 'messages' else _PREFERENCE}"
        plain.append(_message(role, content))
    return plain


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _shared_beginning(chosen: Messages, rejected: Messages) -> Messages:
    """Messages that both begin with, up to the last by the user or a tool among them."""
    same = [
        one
        for one, _ in itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)
        )
    ]
    while same and same[-1]["role"] == "assistant":
        same.pop()
    return same


def _without(prompt: Messages, answer: Messages) -> Messages:
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
