"""Writes the data of the campaign from installed packages: the demo's, and the documentation of cloud services.

botocore ships the reference of the services that it calls. A tenth of the operations, picked by a hash, is in no
document: they are what the task `operations` asks about.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

CLOUD_CHARACTERS: Final = 6_000_000
"""About 1.4 million tokens."""
DOCUMENT_CHARACTERS: Final = 1_500
SHORTEST_CHARACTERS: Final = 200
HELD_AWAY: Final = 0.1
QUESTIONS: Final = 200
CHOICES: Final = 4
_TAG: Final = re.compile(r"<[^>]+>")
_SENTENCE: Final = re.compile(r"^(.{40,240}?\.)(\s|$)")
_DEMO: Final = Path(__file__).parents[2] / "examples/quickstart/make_data.py"
_DONE: Final = "written.json"

Service = Mapping[str, Any]


def write(folder: Path) -> Path:
    """Write model, texts and questions below `folder` unless they are there; return it."""
    if (folder / _DONE).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(_DEMO), "--out", str(folder)], check=True, stdout=sys.stderr)
    shutil.copyfile(folder / "domain.jsonl", folder / "clinical.jsonl")
    services = list(installed_services())
    texts = cloud_documents(services)
    _write_lines(folder / "cloud.jsonl", ({"text": text} for text in texts))
    _write_lines(folder / "operations_task.jsonl", operation_questions(services))
    (folder / _DONE).write_text(json.dumps({"cloud": len(texts), "characters": sum(map(len, texts))}))
    return folder


def installed_services() -> Iterator[Service]:
    """Return the newest description of each service that botocore has, in the order of their names."""
    spec = find_spec("botocore")
    assert spec is not None
    assert spec.origin is not None
    for folder in sorted((Path(spec.origin).parent / "data").iterdir()):
        files = sorted(folder.glob("*/service-2.json.gz"))
        if files:
            with gzip.open(files[-1]) as file:
                yield json.load(file)


def cloud_documents(services: Iterable[Service], characters: int = CLOUD_CHARACTERS) -> list[str]:
    """Return a document for each operation that is not held away, drawn by hash up to a number of characters."""
    found = [
        (_fraction(f"document {_title(service)} {name}"), text)
        for service in services
        for name in service["operations"]
        if not is_held_away(name)
        and len(text := document(service, name)) >= SHORTEST_CHARACTERS
        and not _names_held_away(service, text)
    ]
    kept, size = [], 0
    for _, text in sorted(found):
        if size >= characters:
            break
        kept.append(text)
        size += len(text)
    return kept


def document(service: Service, name: str) -> str:
    """Return what the reference says of an operation and of the fields of its request."""
    operation = service["operations"][name]
    lines = [f"{_title(service)}: {name}", plain(operation.get("documentation", ""))]
    shape = service["shapes"].get(operation.get("input", {}).get("shape", ""), {})
    for field, member in shape.get("members", {}).items():
        said = plain(member.get("documentation", ""))
        if said:
            lines.append(f"{field}: {said}")
    text = ""
    for line in lines:
        if text and len(text) + len(line) > DOCUMENT_CHARACTERS:
            break
        text += line + "\n"
    return text.strip()[: 2 * DOCUMENT_CHARACTERS]


def operation_questions(services: Iterable[Service], most: int = QUESTIONS) -> list[dict[str, Any]]:
    """Return which operation does what: about those held away, with others of the service as wrong choices."""
    found = []
    for service in services:
        names = sorted(service["operations"])
        for name in filter(is_held_away, names):
            sentence = _SENTENCE.match(plain(service["operations"][name].get("documentation", "")))
            others = _alike(name, names)
            if sentence is not None and len(others) >= CHOICES - 1 and name not in sentence[1]:
                found.append(
                    (_fraction(f"question {_title(service)} {name}"), service, name, sentence[1], others)
                )
    found.sort(key=lambda item: item[0])
    return [
        _question(_title(service), name, sentence, others[: CHOICES - 1], number % CHOICES)
        for number, (_, service, name, sentence, others) in enumerate(found[:most])
    ]


def _question(title: str, name: str, sentence: str, wrong: Sequence[str], place: int) -> dict[str, Any]:
    choices = [*wrong[:place], name, *wrong[place:]]
    question = f"{sentence} Which operation of {title} does this?"
    return {"question": question, "choices": choices, "answer": place}


def _alike(name: str, names: Sequence[str]) -> list[str]:
    """Return the other names, those first that begin with the same verb, which are harder to tell apart."""
    verb = re.match(r"[A-Z][a-z]*", name)
    begin = verb[0] if verb is not None else name[:3]
    others = [other for other in names if other != name]
    return sorted(others, key=lambda other: (not other.startswith(begin), _fraction(f"{name} {other}")))


def is_held_away(name: str) -> bool:
    """Whether no document is about operations of this name, in any service."""
    return _fraction(f"held away {name}") < HELD_AWAY


def _names_held_away(service: Service, text: str) -> bool:
    return any(is_held_away(word) for word in set(re.findall(r"\w+", text)) & set(service["operations"]))


def plain(text: str) -> str:
    """Return text without its markup, on one line."""
    return " ".join(html.unescape(_TAG.sub(" ", text)).replace(" .", ".").replace(" ,", ",").split())


def _title(service: Service) -> str:
    return str(service["metadata"]["serviceFullName"])


def _fraction(text: str) -> float:
    """Return a number from 0 to 1 that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    written = path.with_suffix(".part")
    with written.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    written.replace(path)
