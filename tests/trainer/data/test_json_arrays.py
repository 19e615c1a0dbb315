"""A file that is one JSON array is read element by element, within the memory of one."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from dapt_trainer.data.reading import json_arrays
from dapt_trainer.data.reading.documents import BadFileError, BadRecord, read_documents
from dapt_trainer.data.reading.sources import resolve


def read(path: Path) -> list[str]:
    """The texts, and the bad records as `ELEMENT: reason`."""
    return [
        f"{record.location.removeprefix(f'{path}:')}: {record.reason}"
        if isinstance(record, BadRecord)
        else record.text
        for record in read_documents(resolve(f"file://{path}", "f"), "text")
    ]


STRANGE = (
    'a "quoted" [bracket], {brace}',
    "back\\slash\\",
    "",
    "line\nbreak",
    "\u2028 é 🙂",
    "]",
    '\\"',
    "x" * 300,
)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("read_bytes", [1, 7, 1024])
def test_elements_are_documents_wherever_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, read_bytes: int
) -> None:
    monkeypatch.setattr(json_arrays, "READ_BYTES", read_bytes)
    # More than the beginning, which is read at once.
    texts = ["a" * (64 * 1024 - 500), *STRANGE, *STRANGE]
    records = [{"text": text, "more": [{"a": [1, text[:300]]}]} for text in texts]
    content = json.dumps(records, indent=indent, ensure_ascii=bool(indent)).encode()
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf\n " + content + b"\n")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(content))
    assert read(tmp_path / "a.json") == texts
    assert read(tmp_path / "b.json.gz") == texts


def test_a_bad_element_costs_itself_alone(tmp_path: Path) -> None:
    good = '{"text": "good"}'
    elements = [
        good,
        '{"text" "a"}',
        '"b"',
        '{"text": "\\ud800"}',
        "[" * 5000 + "]" * 5000,
        "",
        good,
        '{"t": 1}',
    ]
    (tmp_path / "a.json").write_text("[" + ",\n".join(elements) + "]")
    assert read(tmp_path / "a.json") == [
        "good",
        "2: not JSON (Expecting ':' delimiter: line 1 column 9 (char 8))",
        "3: not a JSON object but a string",
        "4: not Unicode text (half of a surrogate pair)",
        "5: nested too deeply",
        "6: not JSON (Expecting value: line 1 column 1 (char 0))",
        "good",
        "8: no field 'text'",
    ]


def test_an_element_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_arrays, "MAX_LINE_BYTES", 1024)
    monkeypatch.setattr(json_arrays, "READ_BYTES", 128)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b" * 90_000}]))
    with pytest.raises(
        BadFileError, match=r"a\.json: element 2 of its array is longer than 0 MiB; shorten it"
    ):
        read(tmp_path / "a.json")


def test_arrays_of_random_values_are_split_as_a_parser_splits_them(tmp_path: Path) -> None:
    chooser = random.Random(7)

    def value(depth: int) -> object:
        kind = chooser.randrange(6 if depth else 4)
        if kind < 4:
            return [None, chooser.random(), chooser.choice(STRANGE), True][kind]
        parts = [value(depth - 1) for _ in range(chooser.randrange(4))]
        return parts if kind == 4 else {chooser.choice(STRANGE): part for part in parts}

    for _ in range(50):
        records = [{"more": value(3), "text": str(number)} for number in range(chooser.randrange(1, 6))]
        (tmp_path / "a.json").write_text(json.dumps(records, indent=chooser.choice([None, 2])))
        assert read(tmp_path / "a.json") == [record["text"] for record in records]
