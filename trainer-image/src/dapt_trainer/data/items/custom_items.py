"""Reads custom tasks and probe sets, checks them line by line, and writes them in one form.

    tasks/NAME.jsonl               {"question": str, "choices": [str, ...], "answer": index}
    probes/NAME.jsonl              {"prompt": str, "choices": [str, ...], "answer": index}
                                   {"prompt": str, "order": [str, ...]}, the likeliest continuation first

A user may give an answer as the index, from 0, or as the text of one of the choices; it is written as the index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dapt_contract.base import JsonObject
from dapt_trainer.data.dedup.contamination import EvaluationItem
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.json_lines import DataSet, missing_text, read_checked

Kind = Literal["task", "probe"]
_QUESTION_KEY: dict[Kind, str] = {"task": "question", "probe": "prompt"}


@dataclass(frozen=True)
class ChoiceItem:
    """Holds one checked item with one right answer."""

    kind: Kind
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""

    def as_line(self) -> dict[str, object]:
        """Return the item as it is written."""
        return {
            _QUESTION_KEY[self.kind]: self.question,
            "choices": list(self.choices),
            "answer": self.answer,
        }

    def as_evaluation_item(self, name: str) -> EvaluationItem:
        """Return what decontamination looks for."""
        return EvaluationItem(
            name,
            self.question,
            self.choices[self.answer],
            is_prompt=self.kind == "probe",
            choices=self.choices if self.kind == "task" else (),
        )


@dataclass(frozen=True)
class OrderItem:
    """Holds one checked probe that puts continuations in order."""

    prompt: str
    order: tuple[str, ...]
    """The likeliest first."""

    def as_line(self) -> dict[str, object]:
        """Return the item as it is written."""
        return {"prompt": self.prompt, "order": list(self.order)}

    def as_evaluation_item(self, name: str) -> EvaluationItem:
        """Return what decontamination looks for."""
        return EvaluationItem(name, self.prompt, self.order[0], is_prompt=True)


CustomItem = ChoiceItem | OrderItem


def read_items(kind: Kind, uri: str, field: str, problems: Problems) -> DataSet[CustomItem]:
    """Read the items of a custom task or probe set, and report what is wrong with them line by line."""
    return read_checked(uri, field, problems, lambda record: _checked_item(kind, record))


def evaluation_items(name: str, items: Iterable[CustomItem]) -> list[EvaluationItem]:
    """Return what decontamination looks for.

    Args:
        name: of the task or probe set.
        items: those that are measured.
    """
    return [item.as_evaluation_item(name) for item in items]


def _checked_item(kind: Kind, record: JsonObject) -> CustomItem | str:
    key = _QUESTION_KEY[kind]
    accepted = f'a {kind} item is {{"{key}": text, "choices": [texts], "answer": index}}'
    if kind == "probe" and "order" in record:
        return _checked_order(record)
    if kind == "probe":
        accepted += ', or {"prompt": text, "order": [texts]}'
    question, answer = record.get(key), record.get("answer")
    choices = _texts(record.get("choices"))
    if not isinstance(question, str) or not question.strip():
        return f"{missing_text(record, key)}; {accepted}"
    if choices is None:
        return f"field 'choices' is not a list of at least two texts; {accepted}"
    if len(set(choices)) < len(choices):
        return "two of the choices are equal; every choice must differ"
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"answer {answer!r} is not an index from 0 to {len(choices) - 1}, nor one of the choices; correct it"
    return ChoiceItem(kind, question, choices, answer)


def _checked_order(record: JsonObject) -> OrderItem | str:
    accepted = 'a probe that orders is {"prompt": text, "order": [texts]}, the likeliest first'
    prompt = record.get("prompt")
    order = _texts(record["order"])
    if "choices" in record or "answer" in record:
        return f"it has 'order' and also 'choices' or 'answer', but a probe chooses or orders; {accepted}"
    if not isinstance(prompt, str) or not prompt.strip():
        return f"{missing_text(record, 'prompt')}; {accepted}"
    if order is None:
        return f"field 'order' is not a list of at least two texts; {accepted}"
    if len(set(order)) < len(order):
        return "two entries of 'order' are equal; every entry must differ"
    return OrderItem(prompt, order)


def _texts(value: object) -> tuple[str, ...] | None:
    """Return the texts of a list of at least two, none of them empty; None for everything else."""
    if not isinstance(value, list):
        return None
    texts = tuple(item for item in value if isinstance(item, str) and item.strip())
    return texts if len(texts) == len(value) >= 2 else None
