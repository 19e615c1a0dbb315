"""Reads the header of a GGUF file within bounds, and refuses one that describes another model than it holds.

The converter builds a model by the header's numbers alone, so they are compared with the tensors first. The header has
a magic word, a version, the numbers of tensors and of keys; then keys with typed values; then name, dimensions, type
and offset of each tensor (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_MAX_KEYS, _MAX_TENSORS, _MAX_DIMENSIONS = 10_000, 1_000_000, 8
_MAX_TEXT_BYTES, _MAX_ENTRIES = 1024 * 1024, 4_000_000
_LAYERS, _WIDTHS = ("block_count",), ("embedding_length", "feed_forward_length", "vocab_size")

Value = int | float | str | None


def gguf_problem(path: Path) -> str:
    """Return what is wrong with the header of a GGUF file, as a clause; empty where it can be converted.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _Header(file, path.stat().st_size).problem()
    except (ValueError, KeyError, UnicodeDecodeError, struct.error):
        return "its header is damaged"


class _Header:
    """Reads a header from front to back."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def problem(self) -> str:
        """Return what is wrong with it; empty where nothing is."""
        if self._file.read(4) != b"GGUF":
            raise ValueError
        self._number("I")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
            return f"its header has {num_tensors:,} tensors and {num_keys:,} keys"
        values: dict[str, Value] = {}
        for _ in range(num_keys):
            name = self._text()
            values[name] = self._value(self._number("I"))
        largest = 0
        for _ in range(num_tensors):
            self._text()
            num_dimensions = self._number("I")
            if num_dimensions > _MAX_DIMENSIONS:
                raise ValueError
            largest = max([largest, *(self._number("Q") for _ in range(num_dimensions))])
            self._number("I")
            if self._number("Q") > self._size:
                return "a tensor lies behind its end"
        return _impossible(values, num_tensors, largest)

    def _number(self, code: str) -> int:
        size = struct.calcsize("<" + code)
        value: int = struct.unpack("<" + code, self._file.read(size))[0]
        return value

    def _text(self) -> str:
        length = self._number("Q")
        if length > _MAX_TEXT_BYTES:
            raise ValueError
        return self._file.read(length).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Value:
        """Return a number or a text; the number of its entries for a list."""
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._number(_FORMATS[kind])
        inner, length = self._number("I"), self._number("Q")
        # A list of lists is in no published file.
        if length > _MAX_ENTRIES or inner == _LIST:
            raise ValueError
        if inner == _TEXT:
            for _ in range(length):
                self._text()
        else:
            self._file.seek(length * struct.calcsize("<" + _FORMATS[inner]), 1)
        return None


def _impossible(values: Mapping[str, Value], num_tensors: int, largest: int) -> str:
    """Return which number of the header no tensor bears out."""
    family = values.get("general.architecture")
    for keys, limit, of in (
        (_LAYERS, num_tensors, "tensors"),
        (_WIDTHS, largest, "rows in its largest tensor"),
    ):
        for key in keys:
            value = values.get(f"{family}.{key}", 0)
            if isinstance(value, int) and value > limit:
                return f"it has {family}.{key} {value:,} and {limit:,} {of}"
    return ""
