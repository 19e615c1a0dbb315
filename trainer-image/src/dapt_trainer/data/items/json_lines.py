"""Reads and checks sources of JSON lines that are not plain text: evaluation items, SFT examples, preference pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dapt_contract.base import JsonObject
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.reading.documents import BadFileError, BadRecord, read_json_lines
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.errors import InputError

_MAX_SHOWN_PROBLEMS = 5
_MAX_SHOWN_FIELDS = 12

Checked = TypeVar("Checked")
"""A record after its check."""


@dataclass(frozen=True)
class DataSet(Generic[Checked]):
    """Holds the checked records of one task, probe set, SFT or preference source."""

    records: tuple[Checked, ...]
    resolved: str
    """URI with an immutable revision and the number and size of its files."""


def read_checked(
    uri: str, field: str, problems: Problems, check: Callable[[JsonObject], Checked | str]
) -> DataSet[Checked]:
    """Read all records of a source; report the first bad ones with file and line.

    Args:
        uri: of JSON lines.
        field: the manifest's field, for messages.
        problems: gets the sentences.
        check: returns a record in the form in which it is kept, or a sentence that says what is wrong with it.
    """
    records: list[Checked] = []
    bad: list[str] = []
    resolved = uri
    try:
        source = resolve(uri, field)
        resolved = source.resolved
        for line in read_json_lines(source):
            if isinstance(line, BadRecord):
                bad.append(f"{field}: {line.location}: {line.reason}; correct the line")
                continue
            location, record = line
            checked = check(record)
            if isinstance(checked, str):
                bad.append(f"{field}: {location}: {checked}")
            else:
                records.append(checked)
    except InputError as error:
        problems.add_error(error)
        return DataSet((), resolved)
    except BadFileError as error:
        problems.add(f"{field}: {error}")
        return DataSet((), resolved)
    for sentence in bad[:_MAX_SHOWN_PROBLEMS]:
        problems.add(sentence)
    if len(bad) > _MAX_SHOWN_PROBLEMS:
        problems.add(f"{field}: {len(bad) - _MAX_SHOWN_PROBLEMS} more bad lines in {uri}")
    if not records and not bad:
        problems.add(f"{field}: {uri} has no line; fill it or remove it")
    return DataSet(tuple(records), resolved)


def missing_text(record: JsonObject, key: str) -> str:
    """Return what is wrong with a record whose field `key` holds no text."""
    if key in record:
        return f"field {key!r} is empty or of the wrong type"
    return f"no field {key!r} (its fields are {', '.join(list(record)[:_MAX_SHOWN_FIELDS]) or 'none'})"


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines.

    Raises:
        OSError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
