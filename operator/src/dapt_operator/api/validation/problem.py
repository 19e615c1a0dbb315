"""Describes one problem of a manifest, and words values and what a field accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.base import PATTERNS
from dapt_operator.api.validation.hints.advice import Advice
from dapt_operator.api.validation.yaml_source import Path

_SHOWN_CHARACTERS = 60
_SHOWN_LINES = 5
_LAST_OWN_METADATA = "annotations"
"""The fields of metadata after this one are written by the API server; nobody adds them to a manifest."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_./-]{1,60}")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one field.

    Attributes:
        field: path in the manifest, such as spec.corpus.domain[0].source.
        value: the value there, None when there is none.
        message: what is accepted and the next step.
        line: line of the field, from 1; 0: the document is no text.
        shows_value: whether the sentence names the value as not accepted.
        is_supported: false for what this version does not do yet.
        advice: the change that the message proposes, tried on the document; None: it proposes none.
        other_lines: lines of other fields with the same problem, which are not listed on their own.
    """

    field: str
    value: object
    message: str
    line: int
    shows_value: bool = False
    is_supported: bool = True
    advice: Advice | None = None
    other_lines: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return `spec.seed (line 4): 'abc' is not accepted; ...`, or `not supported yet: spec.queue x (line 5)...`."""
        place = f" (line {self.line})" if self.line else ""
        if not self.is_supported:
            value = "" if self.value is None else f" {shortened(str(self.value), _SHOWN_CHARACTERS)}"
            return f"not supported yet: {self.field}{value}{place}: {self.message}"
        value = f"{value_text(self.value)} is not accepted; " if self.shows_value else ""
        return f"{self.field or 'document'}{place}: {value}{self.message}{self._others_text()}"

    def _others_text(self) -> str:
        if not self.other_lines:
            return ""
        lines = sorted({*self.other_lines} - {self.line})
        shown = ", ".join(map(str, lines[:_SHOWN_LINES])) + (", ..." if len(lines) > _SHOWN_LINES else "")
        where = f", line{'s' if len(lines) > 1 else ''} {shown}" if lines else ""
        return f" (and {len(self.other_lines)} more like it{where})"


def grouped(problems: Iterable[Problem]) -> list[Problem]:
    """Return one problem for each cause, with the lines of the others: the same sentence about items of one list."""
    groups: dict[tuple[object, ...], list[Problem]] = {}
    for problem in problems:
        field = re.sub(r"\[\d+\]", "[]", problem.field)
        value = value_text(problem.value) if problem.shows_value else ""
        groups.setdefault((field, value, problem.message), []).append(problem)
    return [
        replace(first, other_lines=tuple(problem.line for problem in others))
        for first, *others in groups.values()
    ]


def path_text(path: Path) -> str:
    """Return spec.corpus.domain[0] for ('spec', 'corpus', 'domain', 0); a name with other characters is in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_NAME.fullmatch(part):
            text += f".{part}"
        else:
            text += f"[{shortened(part, _SHOWN_CHARACTERS)!r}]"
    return text.removeprefix(".")


def value_text(value: object) -> str:
    """Return a value as it is written in YAML, shortened: texts in quotes, blocks and lists by name."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a block" if value else "an empty block"
    if isinstance(value, list):
        return f"a list of {len(value)} items" if value else "an empty list"
    if isinstance(value, str):
        return repr(shortened(value, _SHOWN_CHARACTERS))
    return str(value)


def accepted_text(schema: dict[str, Any], value: object = None) -> str:
    """Return what a field accepts, by its schema. value: what was written, to name the bound that it breaks."""
    if "enum" in schema:
        choices = [str(choice) for choice in schema["enum"]]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range_text(schema)
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        return f"a list{_count_text(schema.get('minItems', 0), schema.get('maxItems'), 'items')}"
    if kind == "object":
        names = list(schema.get("properties", {}))
        if "managedFields" in names:
            names = names[: names.index(_LAST_OWN_METADATA) + 1]
        return f"a block with {_listed(names)}" if names else "an empty block, {}"
    if schema.get("x-kubernetes-int-or-string"):
        return "a whole number, or a Kubernetes quantity in quotes, such as '500m' or '0.5'"
    if schema.get("pattern") in PATTERNS:
        limit = schema.get("maxLength")
        is_too_long = limit is not None and isinstance(value, str) and len(value) > limit
        return PATTERNS[schema["pattern"]] + (f", at most {limit} characters" if is_too_long else "")
    return f"a text{_count_text(schema.get('minLength', 0), schema.get('maxLength'), 'characters')}"


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return f"the field {names[0]}"
    return f"the fields {', '.join(names[:-1])} and {names[-1]}"


def _count_text(least: int, most: int | None, unit: str) -> str:
    if most is None:
        return f" of at least {least} {unit}" if least else ""
    if least == most:
        return f" of {most} {unit}"
    return f" of {least} to {most} {unit}" if least else f" of at most {most} {unit}"


def _range_text(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None or high is None:
        return ""
    if not schema.get("exclusiveMinimum") and not schema.get("exclusiveMaximum"):
        return f" from {low} to {high}"
    start = f" above {low}" if schema.get("exclusiveMinimum") else f" of at least {low}"
    end = f" and below {high}" if schema.get("exclusiveMaximum") else f" and at most {high}"
    return start + end
