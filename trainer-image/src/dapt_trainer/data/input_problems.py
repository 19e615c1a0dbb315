"""Collects the problems of all inputs while prepare continues to read, so that they are raised together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dapt_contract.sentences import CUT_MARK, shortened
from dapt_trainer.errors import InputError

MAX_PROBLEMS = 50
_MAX_CHARACTERS = 2_000
"""A value that a sentence quotes may be as long as a record: its middle is left out, and the next step stays."""
_NUMBER = re.compile(r"\d+")
_QUOTED = re.compile(r"""(?<!\w)(['"])(?:\\.|(?!\1).)*\1(?!\w)""")
"""What `repr` writes of a text."""


@dataclass
class _Place:
    """Holds the first place of a cause in a field of the manifest, and how many places have it."""

    sentence: str
    count: int = 1


class Problems:
    """Holds one sentence for each problem; a stage with any of them fails."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], _Place] = {}

    def add(self, sentence: str) -> None:
        """Add one problem, unless the same sentence is there already."""
        sentence = _without_middle(sentence)
        self._entries.setdefault(("", sentence), _Place(sentence))

    def add_at(self, field: str, location: str, cause: str) -> None:
        """Add a problem of one record; the same cause in further records of the field is counted.

        Causes that differ in numbers ("messages[1]" and "messages[3]") or in quoted texts alone are the same one.

        Args:
            field: of the manifest.
            location: `FILE:LINE`.
            cause: what is wrong with the record, and what to do.
        """
        cause = _without_middle(cause)
        key = (field, _NUMBER.sub("0", _QUOTED.sub(_value_or_nothing, cause)))
        known = self._entries.get(key)
        if known is None:
            self._entries[key] = _Place(f"{field}: {location}: {cause}")
        else:
            known.count += 1

    def add_error(self, error: InputError) -> None:
        """Add the problems of an error that was caught, so that the other inputs are read too."""
        for sentence in error.problems:
            self.add(sentence)

    def __bool__(self) -> bool:
        """Return whether there is any problem."""
        return bool(self._entries)

    def sentences(self) -> list[str]:
        """Return the sentences; past `MAX_PROBLEMS` one sentence says how many more there are."""
        shown = [_counted(place) for place in list(self._entries.values())[:MAX_PROBLEMS]]
        left = len(self._entries) - len(shown)
        return [*shown, f"and {left} more problems like these"] if left else shown

    def raise_if_any(self) -> None:
        """Raise one error with all problems.

        Raises:
            InputError: there is at least one problem.
        """
        if self._entries:
            raise InputError(*self.sentences())


def first_line(error: BaseException, limit: int = 160) -> str:
    """Return the first line of an exception's message, cut to `limit` characters; its class name without a message."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return shortened(text, limit)


def _value_or_nothing(quoted: re.Match[str]) -> str:
    """Return a quoted word, which is the value that is wrong, and nothing for an excerpt of the record's text."""
    text = quoted.group()
    return "" if re.search(r"[\s\\]", text) else text


def _without_middle(sentence: str) -> str:
    if len(sentence) <= _MAX_CHARACTERS:
        return sentence
    half = (_MAX_CHARACTERS - len(CUT_MARK)) // 2
    return f"{sentence[:half]}{CUT_MARK}{sentence[-half:]}"


def _counted(place: _Place) -> str:
    if place.count == 1:
        return place.sentence
    more = place.count - 1
    return f"{place.sentence} ({more:,} more {'record has' if more == 1 else 'records have'} the same fault)"
