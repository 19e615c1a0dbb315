"""Reads and checks sources of records that are not plain text: evaluation items, SFT examples, preference pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from dapt_contract.base import JsonObject
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.reading.documents import BadFileError, BadRecord
from dapt_trainer.data.reading.records import read_records
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.errors import InputError

_MAX_SHOWN_FIELDS = 12
_RECORDS_PER_BEAT = 256

Checked = TypeVar("Checked")
"""A record after its check."""


@dataclass(frozen=True)
class LocatedRecord(Generic[Checked]):
    """Holds a record after its check, with its place."""

    location: str
    """`FILE:LINE`; a row of a table and an element of an array count as a line."""
    value: Checked


@dataclass(frozen=True)
class BadPlace:
    """Says what is wrong with a record."""

    location: str
    cause: str


@dataclass
class CheckedSource(Generic[Checked]):
    """Holds what was read of one source of the manifest."""

    uri: str
    manifest_field: str
    """For messages."""
    resolved: str
    """URI with an immutable revision and the number and size of its files."""
    records: list[LocatedRecord[Checked]] = field(default_factory=list)
    bad: list[BadPlace] = field(default_factory=list)
    num_read: int = 0
    """Records of the source, bad ones included; `records` gets shorter when some are left out."""
    has_failed: bool = False
    """Whether the source could not be read to its end, which is reported already."""

    @property
    def values(self) -> tuple[Checked, ...]:
        """Return the checked records without their places."""
        return tuple(record.value for record in self.records)

    def report(
        self, problems: Problems, *, max_bad_fraction: float = 0.0, bad_records_field: str = ""
    ) -> None:
        """Report the bad records where they are more than the allowed share, and a source without any record.

        Args:
            problems: gets one sentence for each cause.
            max_bad_fraction: share of the records that may be bad.
            bad_records_field: field of the manifest that allows a share; empty: none does.
        """
        if self.has_failed:
            return
        if not self.num_read:
            problems.add(f"{self.manifest_field}: {self.uri} has no line; fill it or remove it")
        if len(self.bad) <= max_bad_fraction * self.num_read:
            return
        for bad in self.bad:
            problems.add_at(self.manifest_field, bad.location, bad.cause)
        if max_bad_fraction:
            problems.add(
                f"{self.manifest_field}: {len(self.bad):,} of {self.num_read:,} records are bad, over the share of "
                f"{max_bad_fraction:g} that {bad_records_field} allows; correct them, or raise it"
            )


def read_checked(
    uri: str,
    field: str,
    problems: Problems,
    check: Callable[[JsonObject], Checked | str],
    beat: Callable[[], None] = lambda: None,
) -> CheckedSource[Checked]:
    """Read all records of a source; report only what keeps it from being read.

    Args:
        uri: of records.
        field: the manifest's field, for messages.
        problems: gets the sentences.
        check: returns a record in the form in which it is kept, or a sentence that says what is wrong with it.
        beat: called now and then.
    """
    result: CheckedSource[Checked] = CheckedSource(uri, field, uri)
    try:
        source = resolve(uri, field)
        result.resolved = source.resolved
        for number, line in enumerate(read_records(source)):
            if number % _RECORDS_PER_BEAT == 0:
                beat()
            result.num_read = number + 1
            if isinstance(line, BadRecord):
                result.bad.append(BadPlace(line.location, f"{line.reason}; correct the line"))
                continue
            location, record = line
            checked = check(record)
            if isinstance(checked, str):
                result.bad.append(BadPlace(location, checked))
            else:
                result.records.append(LocatedRecord(location, checked))
    except InputError as error:
        problems.add_error(error)
        result.has_failed = True
    except BadFileError as error:
        problems.add(f"{field}: {error}")
        result.has_failed = True
    return result


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
