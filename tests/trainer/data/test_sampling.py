"""`maxTokens` takes a sample over the files and within them: the same each time, and not the first by name."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from fsspec import AbstractFileSystem

from dapt_trainer.data.reading import sampling
from dapt_trainer.data.reading.documents import BadFileError, BadRecord, Document, read_documents
from dapt_trainer.data.reading.file_parts import FilePart
from dapt_trainer.data.reading.sampling import Sample, sampled_documents, with_line
from dapt_trainer.data.reading.sources import resolve

Texts = list[str]


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def texts(file: str, count: int = 400) -> Texts:
    """About 45 characters each, of different lengths, which pack as usual text does."""
    return [
        f"{file} number {number:05} "
        + hashlib.sha256(f"{file} {number}".encode()).hexdigest()[: 14 + number % 33]
        for number in range(count)
    ]


def write(path: Path, content: Texts) -> None:
    lines = b"".join(line(text) for text in content)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(lines))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": content}), path)
    elif path.suffix == ".txt":
        path.write_text("\n".join(content))
    else:
        path.write_bytes(lines)


def sampled(folder: Path, max_tokens: int, seed: int = 7) -> Texts:
    records = sampled_documents(resolve(f"file://{folder}", "f"), "text", Sample(max_tokens, seed))
    return [record.text for record in records if isinstance(record, Document)]


def first(content: Texts, characters: int) -> Texts:
    """The first texts up to a number of characters: what `maxTokens` keeps."""
    kept, size = [], 0
    for text in content:
        if size >= characters:
            break
        kept.append(text)
        size += len(text)
    return kept


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("max_tokens", [10, 500, 2_000, 10_000_000])
def test_the_order_of_a_sample_holds_every_record_once(tmp_path: Path, suffix: str, max_tokens: int) -> None:
    content = {name: texts(name) for name in ("a", "b", "c")}
    for name, own in content.items():
        write(tmp_path / f"{name}{suffix}", own)
    read = sampled(tmp_path, max_tokens)
    assert Counter(read) == Counter(text for own in content.values() for text in own)
    assert read == sampled(tmp_path, max_tokens)
    assert read != sampled(tmp_path, max_tokens, seed=8)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_sample_comes_from_many_files_and_from_all_of_a_large_one(tmp_path: Path, suffix: str) -> None:
    for number in range(40):
        write(tmp_path / f"{number:02}{suffix}", texts(f"{number:02}", 50))
    many = first(sampled(tmp_path, 800), 3_200)
    files = {text[:2] for text in many}
    assert len(files) >= 10
    assert max(files) > "30"
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    write(tmp_path / f"one{suffix}", texts("one", 4000))
    places = [int(text.split()[2]) for text in first(sampled(tmp_path, 4_000), 16_000)]
    assert len(places) > 300
    # In each tenth of the file, when a tenth of it is taken.
    assert len({place // 400 for place in places}) >= 8


def test_whole_text_files_are_drawn_at_random(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"{number:02}.txt", texts(f"{number:02}", 3))
    drawn = [text[:2] for text in first(sampled(tmp_path, 200), 800)]
    assert drawn != sorted(drawn)
    assert max(drawn) > "15"


def test_the_folder_that_a_source_lies_in_does_not_decide(tmp_path: Path) -> None:
    for folder in ("here", "there/below"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        for number in range(6):
            write(tmp_path / folder / "sub" / f"{number}.jsonl", texts(str(number), 40))
        write(tmp_path / folder / "x.jsonl", texts("x", 40))
    assert sampled(tmp_path / "here", 300) == sampled(tmp_path / "there/below", 300)


def test_of_a_large_plain_file_only_ranges_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", texts("large", 30_000))
    begun: list[int] = []
    read_part = sampling.read_part

    def noted(
        filesystem: AbstractFileSystem, part: FilePart, text_field: str
    ) -> Iterator[Document | BadRecord]:
        begun.append((part.end_byte or 0) - part.first_byte)
        return read_part(filesystem, part, text_field)

    monkeypatch.setattr(sampling, "read_part", noted)
    records = sampled_documents(resolve(f"file://{tmp_path}", "f"), "text", Sample(1_000, 7))
    size = 0
    while size < 4_000:
        record = next(records)
        assert isinstance(record, Document)
        size += len(record.text)
    assert sum(begun) < 6 * 4_000 < 0.02 * (tmp_path / "a.jsonl").stat().st_size


def test_of_a_large_packed_file_the_beginning_is_unpacked(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.zst", texts("large", 30_000))
    places = [int(text.split()[2]) for text in first(sampled(tmp_path, 1_000), 4_000)]
    assert 1_000 < max(places) < 2 * sampling.MAX_PASSES * len(places)


def test_a_bad_line_in_the_middle_is_named_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    content = texts("a", 3000)
    path.write_bytes(
        b"".join(line(text) for text in content[:2000]) + b"broken\n" + b"".join(map(line, content[2000:]))
    )
    source = resolve(f"file://{path}", "f")
    (bad,) = [r for r in sampled_documents(source, "text", Sample(100, 7)) if isinstance(r, BadRecord)]
    assert with_line(bad, source).location == f"{path}:2001"
    monkeypatch.setattr(sampling, "MAX_COUNTED_BYTES", 1000)
    assert with_line(bad, source).location == f"{path}:byte {sum(len(line(text)) for text in content[:2000])}"


def test_a_file_that_is_bad_is_found_wherever_its_sample_begins(tmp_path: Path) -> None:
    content = b"[\n" + b",\n".join(line(text).strip() for text in texts("a", 2000)) + b"]\n"
    (tmp_path / "a.jsonl").write_bytes(content)
    for seed in range(4):
        with pytest.raises(BadFileError, match="one JSON array"):
            sampled(tmp_path, 100, seed)


def test_an_array_is_sampled_in_passes(tmp_path: Path) -> None:
    content = texts("a", 2000)
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in content]))
    assert sorted(sampled(tmp_path, 1_000)) == sorted(content)
    places = [int(text.split()[2]) for text in first(sampled(tmp_path, 1_000), 4_000)]
    assert max(places) > 1_000


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_ranges_share_the_lines_of_a_file(tmp_path: Path, ending: str) -> None:
    """Empty lines, one longer than a range, and a last line without an end."""
    content = [*texts("a", 300), "y" * 30_000, *texts("b", 300)]
    lines = "\n\n".join(json.dumps({"text": text}) + ending.strip("\n") for text in content) + ending
    (tmp_path / "a.jsonl").write_text(lines, newline="")
    assert sorted(sampled(tmp_path, 10)) == sorted(content)


def test_without_a_limit_files_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", texts(name, 3))
    records = read_documents(resolve(f"file://{tmp_path}", "f"), "text")
    assert [record.text[0] for record in records if isinstance(record, Document)] == ["a"] * 3 + ["b"] * 3
