"""Reads custom tasks and probe sets, checks them item by item, and writes them in one form.

    tasks/NAME.jsonl               {"question": str, "choices": [str, ...], "answer": index}
    probes/NAME.jsonl              {"prompt": str, "choices": [str, ...], "answer": index}
                                   {"prompt": str, "order": [str, ...]}, the likeliest continuation first

An answer may be given as the index, from 0, as the text of one of the choices, or as its letter or label; it is written
as the index. An answer that can be read in two ways is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dapt_contract.base import JsonObject
from dapt_trainer.data.dedup.contamination import EvaluationItem
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.checked_records import CheckedSource, missing_text, read_checked
from dapt_trainer.errors import InputError

Kind = Literal["task", "probe"]
_QUESTION_KEY: dict[Kind, str] = {"task": "question", "probe": "prompt"}
_CHOICES_KEYS = ("choices", "options")
_CHOICE_TEXT_KEYS, _CHOICE_LABEL_KEYS = ("text", "value"), ("label", "key")
_PARTS_OF_QUESTIONS = (
    "article", "audio", "background", "context", "image", "images", "passage", "premise", "story", "support", "system",
)  # fmt: skip
"""Fields that a question cannot be answered without, in sets that have them."""
_ANSWER_KEYS = ("answer", "answerKey", "answer_key", "answer_idx", "answer_index", "target", "gold")
_LAST_ANSWER_KEY = "label"
"""Names the answer in some sets, and a topic in others: it counts where nothing else names an answer."""
_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")
_DIGITS = re.compile(r"\d+")
_MAX_CHANCE, _MAX_CHANCE_WITH_LAST = 1e-4, 0.1
"""Answers that are never 0 count from 1 where that would happen less often by chance: by itself, and where some are the
number of choices, which is no index."""


@dataclass(frozen=True)
class ChoiceItem:
    """Holds one checked item with one right answer."""

    kind: Kind
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""

    @property
    def texts(self) -> list[str]:
        """Return all texts that are scored."""
        return [self.question, *self.choices]

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

    @property
    def texts(self) -> list[str]:
        """Return all texts that are scored."""
        return [self.prompt, *self.order]

    def as_line(self) -> dict[str, object]:
        """Return the item as it is written."""
        return {"prompt": self.prompt, "order": list(self.order)}

    def as_evaluation_item(self, name: str) -> EvaluationItem:
        """Return what decontamination looks for."""
        return EvaluationItem(name, self.prompt, self.order[0], is_prompt=True)


CustomItem = ChoiceItem | OrderItem


def read_items(
    kind: Kind, uri: str, field: str, problems: Problems, beat: Callable[[], None] = lambda: None
) -> CheckedSource[CustomItem]:
    """Read the items of a custom task or probe set, and report what is wrong with them."""

    indices = _Indices()

    def check(record: JsonObject) -> CustomItem | str:
        item = _checked_item(kind, record)
        indices.add(record, item)
        return item

    source: CheckedSource[CustomItem] = read_checked(uri, field, problems, check, beat)
    source.report(problems)
    if indices.count_from_one:
        problems.add(
            f"{field}: none of {indices.num:,} answers is 0, so they count from 1, but an index counts from 0; "
            "subtract 1, or give letters or the choices themselves"
        )
    _report_contradictions(source, problems)
    return source


@dataclass
class _Indices:
    """Counts the answers of a set that are numbers, to find sets that count from 1."""

    num: int = 0
    num_zero: int = 0
    num_past_end: int = 0
    """Answers that are the number of choices, which only counting from 1 makes of the last one."""
    chance_of_no_zero: float = 1.0

    def add(self, record: JsonObject, item: CustomItem | str) -> None:
        """Count a record's answer, where it is read as an index or as none."""
        choices = _choices(record)
        value = next((record[key] for key in _ANSWER_KEYS if record.get(key) is not None), None)
        number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value.strip()) else value
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(choices, _Choices):
            return
        count = len(choices.texts)
        is_past_end = isinstance(item, str) and number == count
        if choices.labels or not (is_past_end or (isinstance(item, ChoiceItem) and item.answer == number)):
            return
        self.num += 1
        self.num_zero += number == 0
        self.num_past_end += is_past_end
        self.chance_of_no_zero *= 1 - 1 / count

    @property
    def count_from_one(self) -> bool:
        """Return whether the answers can hardly be indices from 0."""
        max_chance = _MAX_CHANCE_WITH_LAST if self.num_past_end else _MAX_CHANCE
        return self.num_zero == 0 and self.chance_of_no_zero < max_chance


def _report_contradictions(source: CheckedSource[CustomItem], problems: Problems) -> None:
    """Report questions that stand in a set twice with different answers: one of them is wrong."""
    answers: dict[tuple[str, frozenset[str]], tuple[str, str]] = {}
    for record in source.records:
        item = record.value
        if not isinstance(item, ChoiceItem):
            continue
        answer = item.choices[item.answer]
        place, other = answers.setdefault((item.question, frozenset(item.choices)), (record.location, answer))
        if other != answer:
            line = place.rpartition(":")[2]
            problems.add_at(
                source.manifest_field,
                record.location,
                f"has the question and choices of line {line} with another answer; keep the right one",
            )


def read_written_items(kind: Kind, path: Path) -> tuple[CustomItem, ...]:
    """Read a task or probe set that prepare wrote.

    Raises:
        InputError: there is no file, or it is damaged.
    """
    items = []
    try:
        for line in path.read_bytes().split(b"\n"):
            item = _checked_item(kind, json.loads(line)) if line else None
            if isinstance(item, str):
                raise ValueError(item)
            items += [item] if item is not None else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); run prepare again") from error
    return tuple(items)


def evaluation_items(name: str, items: Iterable[CustomItem]) -> list[EvaluationItem]:
    """Return what decontamination looks for.

    Args:
        name: of the task or probe set.
        items: those that are measured.
    """
    return [item.as_evaluation_item(name) for item in items]


@dataclass(frozen=True)
class _Choices:
    """Holds the choices of an item, with the labels that the record has for them."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()


def _checked_item(kind: Kind, record: JsonObject) -> CustomItem | str:
    key = _QUESTION_KEY[kind]
    accepted = f'a {kind} item is {{"{key}": text, "choices": [texts], "answer": index, letter or text}}'
    if kind == "probe" and record.get("order") is not None:
        return _checked_order(record)
    if kind == "probe":
        accepted += ', or {"prompt": text, "order": [texts]}'
    question = record.get(key)
    if not isinstance(question, str) or not question.strip():
        return f"{missing_text(record, key)}; {accepted}"
    part = next((name for name in _PARTS_OF_QUESTIONS if record.get(name)), None)
    if part is not None:
        return f"field {part!r} belongs to the question and is not used; write it into {key!r}, or remove it"
    choices = _choices(record)
    if isinstance(choices, str):
        return f"{choices}; {accepted}"
    if len(set(choices.texts)) < len(choices.texts):
        return "two of the choices are equal; every choice must differ"
    answer = _answer(record, choices, accepted)
    return answer if isinstance(answer, str) else ChoiceItem(kind, question, choices.texts, answer)


def _choices(record: JsonObject) -> _Choices | str:
    """Return the choices, or why there are none.

    They are a list of texts, texts by their labels, texts and labels as ARC has them, or objects with both.
    """
    given = [record[key] for key in _CHOICES_KEYS if record.get(key) is not None]
    if len(given) > 1 and given[0] != given[1]:
        return f"its fields {' and '.join(map(repr, _CHOICES_KEYS))} differ, keep one of them"
    value = given[0] if given else None
    texts, labels = _texts_and_labels(value)
    if texts is None or labels is None or len(set(labels)) < len(labels):
        return "field 'choices' is not a list of at least two texts"
    if labels and len(labels) != len(texts):
        return "field 'choices' is not a list of at least two texts"
    return _Choices(texts, labels)


def _texts_and_labels(value: object) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return the texts of choices and their labels, which a plain list has not; None for what is no list of texts."""
    if isinstance(value, dict):
        if set(value) == {"text", "label"}:
            return _texts(value["text"]), _labels(value["label"])
        # Tables fill the labels that a record does not have.
        filled = {label: text for label, text in value.items() if text is not None}
        return _texts(list(filled.values())), tuple(filled)
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        texts = _texts([_first_of(entry, _CHOICE_TEXT_KEYS) for entry in value])
        return texts, _labels([_first_of(entry, _CHOICE_LABEL_KEYS) for entry in value])
    return _texts(value), ()


def _first_of(entry: object, names: Iterable[str]) -> object:
    return next((entry[name] for name in names if name in entry), None) if isinstance(entry, dict) else None


def _labels(value: object) -> tuple[str, ...] | None:
    """Return the labels of choices, which may be numbers."""
    labels = value if isinstance(value, list) else []
    if any(isinstance(label, bool) or not isinstance(label, str | int) or label == "" for label in labels):
        return None
    return tuple(str(label) for label in labels) or None


def _answer(record: JsonObject, choices: _Choices, accepted: str) -> int | str:
    """Return the index of the right choice, or what is wrong with the fields that name it."""
    given = {key: record[key] for key in _ANSWER_KEYS if record.get(key) is not None}
    if not given and record.get(_LAST_ANSWER_KEY) is not None:
        given = {_LAST_ANSWER_KEY: record[_LAST_ANSWER_KEY]}
    if not given:
        return f"{missing_text(record, 'answer')}; {accepted}"
    readings: dict[str, int] = {}
    for key, value in given.items():
        readings_of_value = _readings(value, choices)
        if len(readings_of_value) > 1:
            ways = " and ".join(f"choice {index} ({why})" for index, why in sorted(readings_of_value.items()))
            return f"{key} {value!r} can be read as {ways}; write the index, from 0, as a number"
        if not readings_of_value:
            named = ", ".join(choices.labels) if choices.labels else f"A to {chr(64 + len(choices.texts))}"
            return (
                f"{key} {value!r} is not an index from 0 to {len(choices.texts) - 1}, nor one of the choices, nor one "
                f"of {named}; correct it"
            )
        (readings[key],) = readings_of_value
    if len(set(readings.values())) > 1:
        named_answers = " and ".join(f"{key} {given[key]!r}" for key in readings)
        return f"{named_answers} name different choices; keep one of them"
    return next(iter(readings.values()))


def _readings(value: object, choices: _Choices) -> dict[int, str]:
    """Return the choices that an answer can mean, each with the reason."""
    count = len(choices.texts)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables hold whole numbers as fractions where some rows have none
    if isinstance(value, int) and not isinstance(value, bool):
        if choices.labels and str(value) in choices.labels:
            found = {choices.labels.index(str(value)): "its label"}
            # Labels that count from 0 say the same as the index.
            return found | ({value: "its index"} if 0 <= value < count else {})
        return {value: "its index"} if 0 <= value < count else {}
    if not isinstance(value, str):
        return {}
    readings = {}
    text = value.strip()
    stripped = [choice.strip() for choice in choices.texts]
    if value in choices.texts:
        readings[choices.texts.index(value)] = "its text"
    elif stripped.count(text) == 1:
        readings[stripped.index(text)] = "its text"
    letter = _LETTER.fullmatch(text)
    if choices.labels:
        label = text if text in choices.labels else letter.group(1).upper() if letter else ""
        if label in choices.labels:
            readings.setdefault(choices.labels.index(label), "its label")
    else:
        if letter and ord(letter.group(1).upper()) - ord("A") < count:
            readings.setdefault(ord(letter.group(1).upper()) - ord("A"), "its letter")
        if _DIGITS.fullmatch(text) and int(text) < count:
            readings.setdefault(int(text), "its index")
    return readings


def _checked_order(record: JsonObject) -> OrderItem | str:
    accepted = 'a probe that orders is {"prompt": text, "order": [texts]}, the likeliest first'
    prompt = record.get("prompt")
    order = _texts(record["order"])
    if record.get("choices") is not None or record.get("answer") is not None:
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
