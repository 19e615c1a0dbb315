"""Lines of JSON that are no plain text: evaluation items, SFT examples, preference pairs. Checked one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.reading.documents import BadFileError, BadRecord, json_lines
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.errors import InputError

_SHOWN_PROBLEMS = 5

Check = Callable[[dict[str, Any]], dict[str, Any] | str]
"""A record in the form in which it is kept, or what is wrong with it."""


@dataclass(frozen=True)
class DataSet:
    """Checked lines of one task, probe set, SFT or preference source."""

    lines: tuple[dict[str, Any], ...]
    resolved: str


def read_checked(uri: str, field: str, problems: Problems, check: Check) -> DataSet:
    """All lines of a source; what is wrong is noted with file and line, the first five of them.

    Args:
        uri: of JSON lines.
        field: of the manifest, for messages.
        problems: gets the sentences.
        check: called for each record.
    """
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


def missing(record: dict[str, Any], key: str) -> str:
    """What is wrong with a field that holds no text."""
    if key in record:
        return f"field {key!r} is empty or of the wrong type"
    return f"no field {key!r} (its fields are {', '.join(list(record)[:12]) or 'none'})"


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines.

    Raises:
        OSError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
