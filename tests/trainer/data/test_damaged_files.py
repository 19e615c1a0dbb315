"""Whatever people's files hold, each fault is a bad record or a bad file with its place, and never a traceback."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.reading import unpacked
from dapt_trainer.data.reading.documents import BadFileError, BadRecord, Document, read_documents
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.data.reading.text_batches import Counts, RecordRules, TextBatches

GOOD = b'{"text": "good"}\n'
TAR = b"a.jsonl".ljust(257, b"\0") + b"ustar\0" + bytes(249) + GOOD
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n"
DEEP = b'{"text": "x", "meta": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"


def read(path: Path) -> list[str]:
    """The texts, and the bad records as `LINE: reason`."""
    return [
        record.text
        if isinstance(record, Document)
        else f"{record.location.removeprefix(str(path) + ':')}: {record.reason}"
        for record in read_documents(resolve(f"file://{path}", "f"), "text")
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # content, whatever Unicode calls it
        ('{"text": "a\u2028b\u2029c\u0085d"}\n', ["a\u2028b\u2029c\u0085d"]),
        (b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', ["a", "b"]),
        (b'{"text": "a"}\n\x0c\n\x0b\n{"text": "b"}', ["a", "b"]),
        (b'{"text": "a"}\x1c\n{"text": "b"}', ["1: not JSON (Extra data: line 1 column 14 (char 13))", "b"]),
        (b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
        (b'{"text": "nul \\u0000 and \\ud83d\\ude00"}\n', ["nul \0 and \U0001f600"]),
        (b'{"text": "a", "n": 1e400, "m": NaN}\n', ["a"]),
        # bad records
        (b'{"text": "\xed\xa0\xbd\xed\xb8\x80"}\n' + GOOD, ["1: not UTF-8 text (byte 0xed at byte 11)", "good"]),
        (b'{"text": "caf\xe9"}\n' + GOOD, ["1: not UTF-8 text (byte 0xe9 at byte 14)", "good"]),
        (b'{"text": "\\ud83d"}\n' + GOOD, ["1: not Unicode text (half of a surrogate pair)", "good"]),
        (b'{"text": "a\x00b"}\n' + GOOD, ["1: not JSON (Invalid control character at: line 1 column 12 (char 11))", "good"]),
        (b'{"text": "a", "n": ' + b"9" * 9999 + b"}\n" + GOOD, ["1: a number of thousands of digits", "good"]),
        (DEEP + GOOD, ["1: nested too deeply", "good"]),
        (GOOD + b'[{"text": "b"}]\n', ["good", "2: not a JSON object but a list"]),
        (b'["a"]\n' + GOOD, ["1: not a JSON object but a list", "good"]),
        (b"", []),
    ],
)  # fmt: skip
def test_lines_are_documents_or_bad_records(tmp_path: Path, lines: bytes | str, expected: list[str]) -> None:
    content = lines.encode() if isinstance(lines, str) else lines
    paths = {
        "a.jsonl": content,
        "b.jsonl.gz": gzip.compress(content[:9]) + gzip.compress(content[9:]),
        "c.jsonl.zst": zstandard.compress(content[:9]) + zstandard.compress(content[9:]),
    }
    for name, packed in paths.items():
        (tmp_path / name).write_bytes(packed)
        if packed:
            assert read(tmp_path / name) == expected, name


def damaged(content: bytes, first: int) -> bytes:
    return content[:first] + bytes(255 - byte for byte in content[first : first + 40]) + content[first + 40 :]


MANY = b"".join(b'{"text": "document %d"}\n' % number for number in range(5000))
PACKED = {".gz": gzip.compress(MANY, mtime=0), ".zst": zstandard.ZstdCompressor(write_checksum=True).compress(MANY)}  # fmt: skip


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_damage_anywhere_in_a_packed_file_is_a_bad_file(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    for content in (
        damaged(PACKED[suffix], int(share * len(PACKED[suffix]))),
        PACKED[suffix][: int(share * len(PACKED[suffix]))],
    ):
        path.write_bytes(content)
        with pytest.raises(BadFileError, match=rf"^{path}: breaks off or is damaged \(.*\); copy it again$"):
            read(path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "not UTF-8 but UTF-16 text; convert it (iconv -f UTF-16 -t UTF-8)"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-be"), "not UTF-8 but UTF-16 text; convert it (iconv -f UTF-16 -t UTF-8)"),
        ("a.jsonl", b'[{"text": "a"},\n {"text": "b"}]', "one JSON array, not one record a line; name it .json, or write each record on a line of its own (jq -c '.[]')"),
        ("a.ndjson", b'\n[\n  {"text": "a"}\n]\n', "one JSON array, not one record a line; name it .json, or write each record on a line of its own (jq -c '.[]')"),
        ("a.jsonl", b'[{"text": "a"}]', "one JSON array, not one record a line; name it .json, or write each record on a line of its own (jq -c '.[]')"),
        ("a.json", b'[{"text": "a"},\n {"text":', "its array breaks off in element 2; copy it again"),
        ("a.json", b'[{"text": "a"}]\n{"text": "b"}', "has text behind the end of its array; give one array or one record a line"),
        ("a.json", b'{\n  "text": "a"\n}\n', "its first record goes over several lines; write each record on a line of its own (jq -c .)"),
        ("a.json", '[{"text": "a"}]'.encode("utf-32"), "not UTF-8 but UTF-32 text; convert it (iconv -f UTF-32 -t UTF-8)"),
        ("a.jsonl", bytes(1000), "holds zero bytes, as a copy that broke off; copy it again"),
        ("a.jsonl.gz", gzip.compress(TAR, mtime=0), "not JSON lines but tar; unpack it, or correct its name"),
        ("a.jsonl", gzip.compress(GOOD * 50, mtime=0), "not JSON lines but gzip; unpack it, or correct its name"),
        ("a.jsonl.gz", gzip.compress(zstandard.compress(GOOD), mtime=0), "not JSON lines but Zstandard; unpack it, or correct its name"),
        ("a.jsonl", b"PAR1 and columns", "not JSON lines but Parquet; unpack it, or correct its name"),
        ("a.jsonl", (GOOD * 9).replace(b"\n", b"\r"), r"its lines end with carriage returns; let them end with line feeds (tr '\r' '\n')"),
        *((name, LFS, "a pointer of git-lfs, not the content; fetch it with `git lfs pull`") for name in ("a.txt", "a.jsonl", "a.md.gz", "a.jsonl.zst", "a.parquet")),
        ("a.txt", b"/annex/objects/SHA256E-s9--ab.txt\n", "a pointer of git-annex, not the content; fetch it with `git annex get`"),
    ],
)  # fmt: skip
def test_a_file_in_another_form_is_a_bad_file(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFileError) as caught:
        read(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {sentence}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\u2028b\r\nc".encode(), "a\u2028b\r\nc"),
        (b"\xef\xbb\xbftext", "text"),
        (b"one\ntwo \xe9", "2: not UTF-8 text (byte 0xe9)"),
        ("text".encode("utf-16"), "1: not UTF-8 but UTF-16 text, or no text"),
        ("text of some length".encode("utf-16-le"), "1: not UTF-8 but UTF-16 text, or no text"),
        (b"%PDF-1.7 text", "1: not text but PDF"),
        (gzip.compress(b"text", mtime=0), "1: not text but gzip"),
        (TAR, "1: not text but tar"),
        (b"a form\x00feed in long text", "a form\x00feed in long text"),
    ],
)
def test_a_text_file_is_a_document_or_a_bad_record(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path / "a.txt") == [expected]


def test_a_file_without_line_breaks_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "MAX_LINE_BYTES", 40)
    (tmp_path / "a.jsonl").write_bytes(GOOD + b'{"text": "' + b"x" * 200 + b'"}\n' + GOOD)
    texts = read(tmp_path / "a.jsonl")
    assert (texts[0], texts[2]) == ("good", "good")
    assert texts[1].startswith("2: longer than ")


def parquet(path: Path, array: pyarrow.Array, name: str = "text") -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"id": pyarrow.array(range(len(array))), name: array}), path)
    return path


@pytest.mark.parametrize(
    "column_type",
    [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())],
)
def test_every_type_of_text_in_parquet_is_read(tmp_path: Path, column_type: pyarrow.DataType) -> None:
    path = parquet(tmp_path / "a.parquet", pyarrow.array(["x", None, "y"]).cast(column_type))
    assert read(path) == ["x", "2: field 'text' is not a string but null", "y"]


def test_rows_of_parquet_that_are_not_utf8_are_bad_records(tmp_path: Path) -> None:
    array = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, [None, pyarrow.py_buffer(b"\0\0\0\0\x03\0\0\0\x05\0\0\0\x06\0\0\0"), pyarrow.py_buffer(b"ab\xffokz")]
    )  # fmt: skip
    assert read(parquet(tmp_path / "a.parquet", array)) == ["1: field 'text' is not UTF-8 text", "ok", "z"]


@pytest.mark.parametrize(
    ("array", "held"),
    [
        (pyarrow.array([1, 2]), "int64"),
        (pyarrow.array([["a"], ["b"]]), "list<element: string>"),
        (pyarrow.array([{"a": "x"}]), "struct<a: string>"),
        (pyarrow.array([b"x"]), "binary"),
        (pyarrow.array([None, None]), "null"),
    ],
)
def test_a_column_of_another_type_is_a_bad_file(tmp_path: Path, array: pyarrow.Array, held: str) -> None:
    path = parquet(tmp_path / "a.parquet", array)
    with pytest.raises(BadFileError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: column 'text' holds {held}, not text; name the one that holds the text as textField, or write the "
        "column as strings"
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_damage_anywhere_in_a_parquet_file_raises_nothing_else(tmp_path: Path, share: float) -> None:
    path = parquet(tmp_path / "a.parquet", pyarrow.array([f"document {number}" for number in range(5000)]))
    content = path.read_bytes()
    for broken in (damaged(content, int(share * len(content))), content[: int(share * len(content))]):
        path.write_bytes(broken or b"PAR1")
        with contextlib.suppress(BadFileError):
            read(path)


def problems_of(folder: Path, allowed: float) -> list[str]:
    problems = Problems()
    counts = Counts()
    source = TextSource(source=f"file://{folder}")
    reader = TextBatches(
        "spec.corpus.domain[0]", source, resolve(source.source, "f"), RecordRules(allowed, 7), problems
    )
    for batch in reader:
        counts.records += batch.records
        counts.bad_records += batch.bad_records
    reader.report_bad_records(counts)
    return problems.sentences()


def test_all_bad_files_of_a_source_are_named_at_once(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", pyarrow.array(["text"] * 10))
    for name in "bcd":
        parquet(tmp_path / f"{name}.parquet", pyarrow.array(["text"] * 5000), name="content")
    (tmp_path / "e.jsonl").write_bytes(b"[\n" + GOOD)
    columns = "no column 'text', its columns are id, content; name the one that holds the text as textField, or remove the file"
    # However many bad records are allowed: a bad file is all of its rows.
    assert problems_of(tmp_path, 1.0) == [
        *(f"spec.corpus.domain[0]: {tmp_path}/{name}.parquet: {columns}" for name in "bcd"),
        f"spec.corpus.domain[0]: {tmp_path}/e.jsonl: one JSON array, not one record a line; name it .json, or write each record on a line of its own (jq -c '.[]')",
    ]


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), ""),
        ("a.jsonl", b" \n\n", ""),
        ("a.json", b"[]", ""),
        ("a.txt", b"caf\xe9", ": each of its 1 records is bad"),
    ],
)
def test_a_source_without_any_document_is_named(
    tmp_path: Path, name: str, content: bytes, cause: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert problems_of(tmp_path, 1.0) == [
        f"spec.corpus.domain[0].source: file://{tmp_path} has no document{cause}; fill it, or remove the source"
    ]


def test_a_table_with_two_columns_of_the_name_is_a_bad_file(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, ["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(BadFileError, match="has 2 columns 'text'; rename all but one"):
        read(tmp_path / "a.parquet")


def test_the_allowed_share_of_bad_records_is_honoured(tmp_path: Path) -> None:
    bad = [DEEP, b'{"text": "\xed\xa0\xbd"}\n', b'{"text": "\\udc00"}\n', b"{\n"]
    (tmp_path / "a.jsonl").write_bytes(GOOD * 36 + b"".join(bad))
    assert problems_of(tmp_path, 0.1) == []
    sentences = problems_of(tmp_path, 0.09)
    assert [sentence.split(": ")[1] for sentence in sentences] == [
        f"{tmp_path}/a.jsonl:{n}" for n in (37, 38, 39)
    ]
    assert all("4 of 40 records read are bad" in sentence for sentence in sentences)


def test_records_that_are_read_can_be_written(tmp_path: Path) -> None:
    """No text that passes has halves of surrogate pairs, which neither tokenizer nor files take."""
    (tmp_path / "a.jsonl").write_bytes(
        b"".join(
            json.dumps({"text": chr(code)}).encode() + b"\n" for code in (0xD7FF, 0xD800, 0xDFFF, 0xE000)
        )
    )
    records = list(read_documents(resolve(f"file://{tmp_path}", "f"), "text"))
    assert [isinstance(record, BadRecord) for record in records] == [False, True, True, False]
    assert all(record.text.encode() for record in records if isinstance(record, Document))


def test_line_that_does_not_end_is_not_skipped_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with a hole of exabytes takes no space."""
    monkeypatch.setattr(unpacked, "MAX_SKIPPED_BYTES", 32 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    os.truncate(path, 1 << 42)
    with pytest.raises(BadFileError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: has a line of more than 32 MiB, so it is no file of records; remove it, or write each record on a line of its own"
    )
