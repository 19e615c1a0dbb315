"""Corpora, tasks and tuning files that mean harm, and what is said of each."""

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
