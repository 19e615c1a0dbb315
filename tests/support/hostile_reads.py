"""Reads hostile files within a limit of memory.

`python -m support.hostile_reads FOLDER` prints what is said of each.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from dapt_contract.stages.tuning_data import InstructionSource, PreferenceInput
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.custom_items import read_items
from dapt_trainer.data.items.tuning_records import read_instructions, read_preferences
from dapt_trainer.data.reading.documents import BadFileError, BadRecord, Document, read_documents
from dapt_trainer.data.reading.records import read_records
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.errors import InputError
from support.hostile_files import FILES

MEMORY_BYTES = 1 << 30
"""Data of the process; without the files, which are written by another one."""
_SHOWN = 3


def said_of(reader: str, path: Path) -> str:
    """What a reader says of a file, without the file's name; anything but bad input is raised."""
    uri = f"file://{path}"
    try:
        said = _READERS[reader](uri)
    except (BadFileError, InputError) as error:
        said = str(error)
    for beginning in ("F: ", f"{uri}: ", f"{path}: ", f"{path}:"):
        said = said.removeprefix(beginning)
    return said.replace(str(path.parent), "FOLDER")


def _documents(uri: str) -> str:
    return _shown(
        record.text if isinstance(record, Document) else _bad(record)
        for record in read_documents(resolve(uri, "F"), "text")
    )


def _records(uri: str) -> str:
    return _shown(
        _bad(record) if isinstance(record, BadRecord) else json.dumps(record[1])
        for record in read_records(resolve(uri, "F"))
    )


def _bad(record: BadRecord) -> str:
    return f"{record.location.rpartition(':')[2]}: {record.reason}"


def _shown(texts: object) -> str:
    """The first texts; all of them are read."""
    shown: list[str] = []
    for text in texts:  # type: ignore[attr-defined]
        if len(shown) < _SHOWN:
            shown.append(text if len(text) < 300 else text[:40])
    return " | ".join(shown)


def _items(kind: str) -> Callable[[str], str]:
    def read(uri: str) -> str:
        problems = Problems()
        found = read_items(kind, uri, "F", problems)  # type: ignore[arg-type]
        return _found([str(value)[:80] for value in found.values], problems)

    return read


def _examples(uri: str) -> str:
    problems = Problems()
    found = read_instructions(InstructionSource(source=uri, format="messages"), "F", problems)
    found.report(problems)
    return _found([str(value.conversations[0].messages) for value in found.values], problems)


def _pairs(uri: str) -> str:
    problems = Problems()
    found = read_preferences(PreferenceInput(source=uri), "F", problems)
    found.report(problems)
    return _found([str(value.conversations[0].messages) for value in found.values], problems)


def _found(values: list[str], problems: Problems) -> str:
    return " | ".join(problems.sentences() or values)


_READERS: dict[str, Callable[[str], str]] = {
    "corpus": _documents,
    "records": _records,
    "task": _items("task"),
    "probe": _items("probe"),
    "examples": _examples,
    "pairs": _pairs,
}


def main(folder: Path) -> None:
    """Print what is said of each file as JSON, by the names of the cases."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    said = {
        case: said_of(reader, folder / str(number) / name)
        for number, (case, (reader, name, *_)) in enumerate(FILES.items())
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
