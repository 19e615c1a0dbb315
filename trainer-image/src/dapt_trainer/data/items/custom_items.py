"""Custom tasks and probe sets: read, checked line by line, written in one form.

    tasks/NAME.jsonl               {"question": str, "choices": [str, ...], "answer": index}
    probes/NAME.jsonl              {"prompt": str, "choices": [str, ...], "answer": index}
                                   {"prompt": str, "order": [str, ...]}, the likeliest continuation first

An answer may be the index, from 0, or the text of one of the choices; it is written as index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from dapt_trainer.data.dedup.contamination import EvaluationItem
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.json_lines import DataSet, missing, read_checked

Kind = Literal["task", "probe"]
_QUESTION = {"task": "question", "probe": "prompt"}


def read_items(kind: Kind, uri: str, field: str, problems: Problems) -> DataSet:
    """The items of a custom task or probe set; what is wrong with them is noted, line by line."""
    return read_checked(uri, field, problems, lambda record: _checked_item(kind, record))


def evaluation_items(name: str, kind: Kind, lines: Iterable[dict[str, Any]]) -> list[EvaluationItem]:
    """What decontamination looks for."""
    key = _QUESTION[kind]
    return [
        EvaluationItem(
            name,
            line[key],
            line["order"][0] if "order" in line else line["choices"][line["answer"]],
            is_prompt=kind == "probe",
            choices=tuple(line["choices"]) if kind == "task" else (),
        )
        for line in lines
    ]


def _checked_item(kind: Kind, record: dict[str, Any]) -> dict[str, Any] | str:
    key = _QUESTION[kind]
    wanted = f'a {kind} item is {{"{key}": text, "choices": [texts], "answer": index}}'
    if kind == "probe" and "order" in record:
        return _checked_order(record)
    if kind == "probe":
        wanted += ', or {"prompt": text, "order": [texts]}'
    question, choices, answer = record.get(key), record.get("choices"), record.get("answer")
    if not isinstance(question, str) or not question.strip():
        return f"{missing(record, key)}; {wanted}"
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


def _checked_order(record: dict[str, Any]) -> dict[str, Any] | str:
    wanted = 'a probe that orders is {"prompt": text, "order": [texts]}, the likeliest first'
    prompt, order = record.get("prompt"), record["order"]
    if "choices" in record or "answer" in record:
        return f"it has 'order' and also 'choices' or 'answer', but a probe chooses or orders; {wanted}"
    if not isinstance(prompt, str) or not prompt.strip():
        return f"{missing(record, 'prompt')}; {wanted}"
    if (
        not isinstance(order, list)
        or len(order) < 2
        or not all(isinstance(item, str) and item.strip() for item in order)
    ):
        return f"field 'order' is not a list of at least two texts; {wanted}"
    if len(set(order)) < len(order):
        return "two entries of 'order' are equal; every entry must differ"
    return {"prompt": prompt, "order": order}
