"""Custom tasks, probe sets and SFT data: read, checked line by line, written in one form.

    tasks/NAME.jsonl               {"question": str, "choices": [str, ...], "answer": index}
    probes/NAME.jsonl              {"prompt": str, "choices": [str, ...], "answer": index}
    instructions/train.jsonl       {"messages": [{"role": str, "content": str}, ...]}, the last by the assistant

An answer may be the index, from 0, or the text of one of the choices; it is written as index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dapt_trainer.data.contamination import EvaluationItem
from dapt_trainer.data.problems import Problems
from dapt_trainer.data.records import BadFileError, BadRecord, json_lines
from dapt_trainer.data.sources import resolve
from dapt_trainer.errors import InputError

_SHOWN_PROBLEMS = 5
_ROLES = ("system", "user", "assistant", "tool")

Kind = Literal["task", "probe"]
_QUESTION = {"task": "question", "probe": "prompt"}


@dataclass(frozen=True)
class DataSet:
    """Checked lines of one task, probe set or SFT source."""

    lines: tuple[dict[str, Any], ...]
    resolved: str


def read_items(kind: Kind, uri: str, field: str, problems: Problems) -> DataSet:
    """The items of a custom task or probe set; what is wrong with them is noted, line by line."""
    return _read(uri, field, problems, lambda record: _checked_item(kind, record))


def read_instructions(uri: str, form: str, field: str, problems: Problems) -> DataSet:
    """SFT examples of one source as lists of messages; what is wrong with them is noted, line by line."""
    check = _checked_messages if form == "messages" else _checked_pair
    return _read(uri, field, problems, check)


def evaluation_items(name: str, kind: Kind, lines: Iterable[dict[str, Any]]) -> list[EvaluationItem]:
    """What decontamination looks for."""
    key = _QUESTION[kind]
    return [
        EvaluationItem(name, line[key], line["choices"][line["answer"]], is_prompt=kind == "probe")
        for line in lines
    ]


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines.

    Raises:
        OSError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _read(
    uri: str, field: str, problems: Problems, check: Callable[[dict[str, Any]], dict[str, Any] | str]
) -> DataSet:
    lines: list[dict[str, Any]] = []
    bad: list[str] = []
    resolved = uri
    try:
        source = resolve(uri, field)
        resolved = source.resolved
        for item in json_lines(source):
            if isinstance(item, BadRecord):
                bad.append(f"{field}: {item.place}: {item.reason}; correct the line")
                continue
            place, record = item
            checked = check(record)
            if isinstance(checked, str):
                bad.append(f"{field}: {place}: {checked}")
            else:
                lines.append(checked)
    except InputError as error:
        problems.add_error(error)
        return DataSet((), resolved)
    except BadFileError as error:
        problems.add(f"{field}: {error}")
        return DataSet((), resolved)
    for sentence in bad[:_SHOWN_PROBLEMS]:
        problems.add(sentence)
    if len(bad) > _SHOWN_PROBLEMS:
        problems.add(f"{field}: {len(bad) - _SHOWN_PROBLEMS} more bad lines in {uri}")
    if not lines and not bad:
        problems.add(f"{field}: {uri} has no line; fill it or remove it")
    return DataSet(tuple(lines), resolved)


def _checked_item(kind: Kind, record: dict[str, Any]) -> dict[str, Any] | str:
    key = _QUESTION[kind]
    wanted = f'a {kind} item is {{"{key}": text, "choices": [texts], "answer": index}}'
    if kind == "probe" and "order" in record:
        return 'probes that put things in order are not supported yet; write {"prompt", "choices", "answer"}'
    question, choices, answer = record.get(key), record.get("choices"), record.get("answer")
    if not isinstance(question, str) or not question.strip():
        return f"{_missing(record, key)}; {wanted}"
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(item, str) and item.strip() for item in choices)
    ):
        return f"field 'choices' is not a list of at least two texts; {wanted}"
    if len(set(choices)) < len(choices):
        return "two of the choices are equal; every choice must differ"
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"answer {answer!r} is not an index from 0 to {len(choices) - 1}, nor one of the choices; correct it"
    return {key: question, "choices": choices, "answer": answer}


def _checked_messages(record: dict[str, Any]) -> dict[str, Any] | str:
    wanted = 'an example is {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}'
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        return f"{_missing(record, 'messages')}; {wanted}"
    plain = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in _ROLES:
            return f"messages[{number}].role is {role!r}; accepted are {', '.join(_ROLES)}"
        if not isinstance(content, str) or not content.strip():
            return f"messages[{number}].content is not a text; {wanted}"
        plain.append({"role": role, "content": content})
    if plain[-1]["role"] != "assistant":
        return f"the last message is by {plain[-1]['role']!r}; it must be the assistant's response, which is learned"
    if not any(message["role"] == "user" for message in plain):
        return "no message is by 'user'; a response answers a user"
    return {"messages": plain}


def _checked_pair(record: dict[str, Any]) -> dict[str, Any] | str:
    for key in ("prompt", "response"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            return f'{_missing(record, key)}; an example is {{"prompt": text, "response": text}}'
    return {
        "messages": [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["response"]},
        ]
    }


def _missing(record: dict[str, Any], key: str) -> str:
    if key in record:
        return f"field {key!r} is empty or of the wrong type"
    return f"no field {key!r} (its fields are {', '.join(list(record)[:12]) or 'none'})"
