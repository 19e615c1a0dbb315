"""Corpora, tasks and tuning files that mean harm, and what is said of each."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet
import zstandard


class Canary:
    """Names the file that hostile code would write; a test that finds it has failed."""

    path: ClassVar[Path] = Path("/nonexistent/canary")


def lines(*values: object) -> bytes:
    """One record a line; bytes stand as they are."""
    return b"".join(
        (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n" for value in values
    )


def parquet(**options: Any) -> Callable[[dict[str, Any]], bytes]:
    """Write columns as Parquet with options of the writer."""

    def written(columns: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer, **options)
        return buffer.getvalue()

    return written


def repeated(value: str, count: int) -> pyarrow.Array:
    """The same text so many times, once in memory."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(count, np.int32)), [value])


def in_one_list(values: pyarrow.Array) -> pyarrow.Array:
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, len(values)], pyarrow.int32()), values)


def zstandard_of(pieces: Iterable[bytes], **parameters: Any) -> bytes:
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(**parameters)
    ).compressobj()
    return b"".join(map(packer.compress, pieces)) + packer.flush()


def gzip_of(pieces: Iterable[bytes]) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        for piece in pieces:
            file.write(piece)
    return buffer.getvalue()


GOOD = {"text": "good"}
LONG = "a" * ((16 << 20) + 1)
DEEP = b"[" * 200_000
MANY_DIGITS = b'{"text": "a", "n": ' + b"9" * 5000 + b"}"
HALF = rb'{"text": "\ud800"}'
QUESTION = {"question": "Which?", "choices": ["one", "two"], "answer": 0}
CODE = "!function evil.run"
TEMPLATE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
MIB = 1 << 20
SMALL_PAGES = parquet(compression="zstd")
ONE_PAGE = parquet(compression="zstd", use_dictionary=False, data_page_size=1 << 30)


def unknown(name: str) -> str:
    return (
        f"file://FOLDER/{name} has no file of a known type (the first is FOLDER/{name}); accepted are .jsonl, .ndjson or "
        ".json (one record a line; .json also one array), .parquet, .txt, .md, each but .parquet also .gz or .zst"
    )


Reader = str
"""Which reader gets the file: corpus, records, task, probe, examples or pairs."""
FILES: dict[str, tuple[Reader, str, Callable[[], bytes], str]] = {
    # 1. Lines.
    "line of no record": ("corpus", "a.jsonl", lambda: lines(b"[]", GOOD), "1: not a JSON object but a list | good"),
    "line is deep": ("corpus", "a.jsonl", lambda: lines(GOOD, DEEP), "good | 2: nested too deeply"),
    "line is a deep object": ("corpus", "a.jsonl", lambda: lines(GOOD, b'{"a":' * 100_000), "good | 2: nested too deeply"),
    "line has a long number": ("corpus", "a.jsonl", lambda: lines(GOOD, MANY_DIGITS), "good | 2: a number of thousands of digits"),
    "line has half a character": ("corpus", "a.jsonl", lambda: lines(GOOD, HALF), "good | 2: not Unicode text (half of a surrogate pair)"),
    "line is not UTF-8": ("corpus", "a.jsonl", lambda: lines(GOOD, b'{"text": "\xff"}'), "good | 2: not UTF-8 text (byte 0xff at byte 11)"),
    "line is a pickle": ("corpus", "a.jsonl", lambda: lines(GOOD, b"cposix\x0asystem\x0a"), "good | 2: not JSON (Expecting value: line 1 column 1 (char 0)) | 3: not JSON (Expecting value: line 1 column 1 (char 0))"),
    "text is a list": ("corpus", "a.jsonl", lambda: lines(GOOD, {"text": ["a"]}), "good | 2: field 'text' is not a string but a list"),
    "text is an object": ("corpus", "a.jsonl", lambda: lines(GOOD, {"text": {"a": 1}}), "good | 2: field 'text' is not a string but an object"),
    "text is a NaN": ("corpus", "a.jsonl", lambda: lines(GOOD, b'{"text": NaN}'), "good | 2: field 'text' is not a string but a number"),
    "text is code": ("corpus", "a.jsonl", lambda: lines({"text": CODE}), "!function evil.run"),
    "text is a template": ("corpus", "a.jsonl", lambda: lines({"text": TEMPLATE}), "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "field twice": ("corpus", "a.jsonl", lambda: lines(b'{"text": 1, "text": "good"}'), "1: has the field 'text' twice"),
    "line is long": ("corpus", "a.jsonl", lambda: lines(GOOD, {"text": LONG}, GOOD), "good | 2: longer than 16 MiB | good"),
    "no line ends": ("corpus", "a.jsonl", lambda: b"x" * (40 * MIB), "1: longer than 16 MiB"),
    "many zero bytes": ("corpus", "a.jsonl", lambda: bytes(MIB), "holds zero bytes, as a copy that broke off; copy it again"),
    "array is deep": ("corpus", "a.json", lambda: b"[" * 200_000, "its array breaks off in element 1; copy it again"),
    "array has a long element": ("corpus", "a.json", lambda: b'[{"text": "' + b"x" * (20 * MIB), "element 1 of its array is longer than 16 MiB; shorten it"),
    "array has deep elements": ("corpus", "a.json", lambda: b"[" + DEEP + b"]" * 200_000 + b', {"text": "good"}]', "1: nested too deeply | good"),
    "array never ends": ("corpus", "a.json", lambda: b'[{"text": "good"}' + b" " * (20 * MIB), "element 1 of its array is longer than 16 MiB; shorten it"),
    "text file is long": ("corpus", "a.txt", lambda: LONG.encode(), "1: longer than 16 MiB"),
    "text file is a program": ("corpus", "a.txt", lambda: b"\x7fELF" + bytes(999), "1: not UTF-8 but UTF-16 text, or no text"),
    "text file is a script": ("corpus", "a.txt", lambda: b"#!/bin/sh\ntouch canary", "#!/bin/sh\ntouch canary"),
    # 2. Packed files.
    "94 KiB of Zstandard are 3 GB": ("corpus", "a.jsonl.zst", lambda: zstandard_of([bytes(MIB)] * 3000), "unpacks to more than 1,000 times its 96,018 bytes, which no text does; give its text in another form, or remove the file"),
    "Zstandard of empty lines": ("corpus", "a.jsonl.zst", lambda: zstandard_of([b"\n" * MIB] * 100), "has more than 100,000 empty lines in a row; remove them"),
    "Zstandard of good lines without end": ("corpus", "a.jsonl.zst", lambda: zstandard_of([lines({"text": "good" * 250_000})] * 100), "unpacks to more than 1,000 times its 9,184 bytes, which no text does; give its text in another form, or remove the file"),
    "Zstandard of a long line": ("corpus", "a.jsonl.zst", lambda: zstandard_of([b'{"text": "', b"x" * (60 * MIB)]), "1: longer than 16 MiB"),
    "Zstandard as text": ("corpus", "a.txt.zst", lambda: zstandard_of([b"x" * MIB] * 100), "1: longer than 16 MiB"),
    "Zstandard with a window of 2 GiB": ("corpus", "a.jsonl.zst", lambda: zstandard_of([lines(GOOD)], window_log=31), "was packed with a window over 128 MiB (zstd --long), which would take as much memory; pack it again without that option"),
    "Zstandard breaks off": ("corpus", "a.jsonl.zst", lambda: zstandard_of([lines(GOOD)])[:-3], "breaks off or is damaged (OSError: Truncated compressed stream); copy it again"),
    "Zstandard with a tail": ("corpus", "a.jsonl.zst", lambda: zstandard_of([lines(GOOD)]) + b"evil", "breaks off or is damaged (OSError: ZSTD decompress failed: Unknown frame descriptor); copy it again"),
    "Zstandard in an array": ("corpus", "a.json.zst", lambda: zstandard_of([b"["] + [b" " * MIB] * 100), "element 1 of its array is longer than 16 MiB; shorten it"),
    "gzip of 300 MB": ("corpus", "a.jsonl.gz", lambda: gzip_of([b"\n" * MIB] * 100), "has more than 100,000 empty lines in a row; remove them"),
    "gzip of a long line": ("corpus", "a.jsonl.gz", lambda: gzip_of([b"x" * (40 * MIB)]), "1: longer than 16 MiB"),
    "gzip in gzip": ("corpus", "a.jsonl.gz", lambda: gzip_of([gzip_of([lines(GOOD)])]), "not JSON lines but gzip; unpack it, or correct its name"),
    "gzip breaks off": ("corpus", "a.jsonl.gz", lambda: gzip_of([lines(GOOD)])[:-3], "breaks off or is damaged (EOFError: Compressed file ended before the end-of-stream marker was reached); copy it again"),
    "xz": ("corpus", "a.jsonl.xz", lambda: b"\xfd7zXZ\0", unknown("a.jsonl.xz")),
    "bzip2": ("corpus", "a.jsonl.bz2", lambda: b"BZh9", unknown("a.jsonl.bz2")),
    # 3. Parquet.
    "Parquet repeats a text": ("corpus", "a.parquet", lambda: SMALL_PAGES({"text": repeated("x" * MIB, 100_000)}), "unpacks to more than 1,000 times its 711 bytes, which no text does; give its text in another form, or remove the file"),
    "Parquet repeats beginnings": ("corpus", "a.parquet", lambda: parquet(compression="zstd", use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})({"text": ["x" * (MIB >> 2)] * 500}), "unpacks to more than 1,000 times its 466 bytes, which no text does; give its text in another form, or remove the file"),
    "Parquet has a large page": ("corpus", "a.parquet", lambda: ONE_PAGE({"text": ["x" * (129 * MIB)]}), "row group 1, column 'text': has a page of 135,266,314 bytes, and at most 128 MiB are read; write the file again with smaller pages"),
    "Parquet has a long text": ("corpus", "a.parquet", lambda: ONE_PAGE({"text": ["good", LONG]}), "good | 2: longer than 16 MiB"),
    "Parquet is footers only": ("corpus", "a.parquet", lambda: b"PAR1" * 9, "not a readable Parquet file (Parquet file size is 36 bytes, smaller than the size reported by footer's (827474256bytes)); write it again"),
    "Parquet claims a long footer": ("corpus", "a.parquet", lambda: b"PAR1" + bytes(99) + b"\xff\xff\xff\x7fPAR1", "not a readable Parquet file (Parquet file size is 111 bytes, smaller than the size reported by footer's (2147483647bytes)); write it again"),
    "Parquet is cut in its pages": ("corpus", "a.parquet", lambda: SMALL_PAGES({"text": ["good"] * 99})[50:], "not a readable Parquet file (the header of a page breaks off); write it again"),
    "Parquet page claims 2 GiB": ("corpus", "a.parquet", lambda: (page := ONE_PAGE({"text": ["good"]}))[:7] + b"\xfe\xff\xff\xff\x0f" + page[8:], "row group 1, column 'text': has a page of 2,147,483,647 bytes, and at most 128 MiB are read; write the file again with smaller pages"),
    "Parquet rows repeat a text": ("records", "a.parquet", lambda: SMALL_PAGES({"text": repeated("x" * MIB, 100_000)}), "unpacks to more than 1,000 times its 711 bytes, which no text does; give its text in another form, or remove the file"),
    "Parquet list repeats a text": ("records", "a.parquet", lambda: SMALL_PAGES({"m": in_one_list(repeated("x" * MIB, 100_000))}), "unpacks to more than 1,000 times its 657 bytes, which no text does; give its text in another form, or remove the file"),
    "Parquet list has 17 million nulls": ("records", "a.parquet", lambda: SMALL_PAGES({"m": in_one_list(pyarrow.nulls(17_000_000, pyarrow.bool_()))}), "row group 1, column 'm.list.element': has lists of 17,000,000 values and 20 bytes, and at most 16,000,000 values and 512 MiB in a row group are read; write the file again with smaller row groups"),
    "Parquet list has a million nulls": ("records", "a.parquet", lambda: SMALL_PAGES({"m": in_one_list(pyarrow.nulls(1_000_000, pyarrow.bool_()))}), "{\"m\": [null, null, null, null, null, nul"),
    "Parquet list repeats beginnings": ("records", "a.parquet", lambda: parquet(use_dictionary=False, column_encoding={"m.list.element": "DELTA_BYTE_ARRAY"})({"m": [["a", "b"]]}), "row group 1, column 'm.list.element': has lists in the encoding DELTA_BYTE_ARRAY, which are not read; write the file again with another encoding, such as the default of pyarrow"),
    "Parquet row is long": ("records", "a.parquet", lambda: ONE_PAGE({"a": ["good", LONG], "b": [1, 2]}), "{\"a\": \"good\", \"b\": 1} | 2: longer than 16 MiB"),
    # 4. Tasks, probes and tuning data.
    "task in YAML": ("task", "a.yaml", lambda: b"doc_to_text: !function evil.run\n", unknown("a.yaml")),
    "task in Python": ("task", "a.py", lambda: b"import evil\n", unknown("a.py")),
    "task in a pickle": ("task", "a.pkl", lambda: b"cposix\nsystem\n", unknown("a.pkl")),
    "task with YAML in JSON": ("task", "a.jsonl", lambda: b"task: x\ninclude: /etc/passwd\ndataset_path: evil.py\n", "1: not JSON (Expecting value: line 1 column 1 (char 0)); correct the line (2 more records have the same fault)"),
    "task of the harness in JSON": ("task", "a.jsonl", lambda: lines({"task": "x", "dataset_path": "evil.py", "doc_to_text": CODE}), "1: no field 'question' (its fields are task, dataset_path, doc_to_text); a task item is {\"question\": text, \"choices\": [texts], \"answer\": index, letter or text}"),
    "question is code": ("task", "a.jsonl", lambda: lines(QUESTION | {"question": CODE}), "ChoiceItem(kind='task', question='!function evil.run', choices=('one', 'two'), a"),
    "question is a template": ("task", "a.jsonl", lambda: lines(QUESTION | {"question": TEMPLATE, "process_results": CODE}), "ChoiceItem(kind='task', question=\"{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "answer is code": ("task", "a.jsonl", lambda: lines(QUESTION | {"answer": CODE}), "1: answer '!function evil.run' is not an index from 0 to 1, nor one of the choices, nor one of A to B; correct it"),
    "answer is out of range": ("task", "a.jsonl", lambda: lines(QUESTION | {"answer": 10**30}), "1: answer 1000000000000000000000000000000 is not an index from 0 to 1, nor one of the choices, nor one of A to B; correct it"),
    "answer is a NaN": ("task", "a.jsonl", lambda: lines(b'{"question": "a", "choices": ["b", "c"], "answer": NaN}'), "1: answer nan is not an index from 0 to 1, nor one of the choices, nor one of A to B; correct it"),
    "choices are a number": ("task", "a.jsonl", lambda: lines(QUESTION | {"choices": 7}), "1: field 'choices' is not a list of at least two texts; a task item is {\"question\": text, \"choices\": [texts], \"answer\": index, letter or text}"),
    "choices are deep": ("task", "a.jsonl", lambda: lines(b'{"choices": ' + DEEP), "1: nested too deeply; correct the line"),
    "probe's order is an object": ("probe", "a.jsonl", lambda: lines({"prompt": "a", "order": {"a": 1}}), "1: field 'order' is not a list of at least two texts; a probe that orders is {\"prompt\": text, \"order\": [texts]}, the likeliest first"),
    "probe is a list": ("probe", "a.json", lambda: b"[[[]]]", "1: not a JSON object but a list; correct the line"),
    "examples in Python": ("examples", "a.py", lambda: b"import evil\n", unknown("a.py")),
    "message is code": ("examples", "a.jsonl", lambda: lines({"prompt": CODE, "response": TEMPLATE}), "[{'role': 'user', 'content': '!function evil.run'}, {'role': 'assistant', 'content': \"{{ ''.__class__.__mro__[1].__subclasses__() }}\"}]"),
    "messages are a number": ("examples", "a.jsonl", lambda: lines({"messages": 7}), "1: field 'messages' is no list of messages"),
    "role is an object": ("examples", "a.jsonl", lambda: lines({"messages": [{"role": {"a": 1}, "content": "a"}]}), "1: messages[0].role is {'a': 1}; accepted are system, user, assistant, tool, developer, gpt, human, observation, function_call, tool_call: map other names with `fields: {roles: ...}`"),
    "role is a book": ("examples", "a.jsonl", lambda: lines({"messages": [{"role": "r" * 1_000_000, "content": "a"}]}), f"1: messages[0].role is '{'r' * 977}...{'r' * 846}'; accepted are system, user, assistant, tool, developer, gpt, human, observation, function_call, tool_call: map other names with `fields: {{roles: ...}}`"),
    "messages are deep": ("examples", "a.jsonl", lambda: lines(b'{"messages": ' + DEEP), "1: nested too deeply; correct the line"),
    "arguments are deep": ("examples", "a.jsonl", lambda: lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}]}), "1: messages[1].tool_calls[0].arguments is not JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string)"),
    "template's variables take its messages": ("examples", "a.jsonl", lambda: lines({"prompt": "a", "response": "b", "chat_template_kwargs": {"messages": []}}), "1: field 'chat_template_kwargs' has 'messages', which the template gets from the record or the tokenizer; remove it"),
    "template in a record": ("examples", "a.jsonl", lambda: lines({"prompt": "a", "response": "b", "chat_template_kwargs": {"chat_template": TEMPLATE}}), "[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]"),
    "pair of numbers": ("pairs", "a.jsonl", lambda: lines({"prompt": 1, "chosen": 2, "rejected": 3}), "1: field 'chosen' is neither a text nor a list of messages"),
    "pair is deep": ("pairs", "a.jsonl", lambda: lines(b'{"chosen": ' + DEEP), "1: nested too deeply; correct the line"),
}  # fmt: skip
"""Reader, name, content, and what is read: documents and `LINE: reason`, or one sentence about the file; FOLDER is its
folder."""
