"""Reads the header of a GGUF file within bounds, without its tensors' content.

The header has a magic word, a version, the numbers of tensors and of keys; then keys with typed values; then name,
dimensions, type and offset of each tensor (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_FORMATS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_MAX_KEYS, _MAX_TENSORS, _MAX_DIMENSIONS = 10_000, 1_000_000, 8
_MAX_TEXT_BYTES, _MAX_ENTRIES = 1024 * 1024, 4_000_000


class GgufError(ValueError):
    """Says in a clause why a file has no GGUF header that can be read."""


class GgufTooLargeError(GgufError):
    """Reports a header that describes more tensors or keys than any model has."""


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the list of tensors."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the tensors' content."""


@dataclass(frozen=True)
class GgufHeader:
    """What the header of a file holds; lists are counted and not kept."""

    values: dict[str, int | float | str]
    list_lengths: dict[str, int]
    """Number of entries of each value that is a list."""
    tensors: tuple[GgufTensor, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header of a file.

    Raises:
        OSError: the file cannot be read.
        GgufTooLargeError: it describes too many tensors or keys.
        GgufError: it is damaged, or no GGUF file.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file).header()
    except (KeyError, struct.error, OverflowError) as error:
        raise GgufError(str(error)) from error


class _Reader:
    """Reads from front to back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def header(self) -> GgufHeader:
        if self._file.read(4) != b"GGUF":
            raise GgufError("it does not begin with GGUF")
        self._number("I")
        num_tensors, num_keys = int(self._number("Q")), int(self._number("Q"))
        if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
            raise GgufTooLargeError(f"its header has {num_tensors:,} tensors and {num_keys:,} keys")
        values: dict[str, int | float | str] = {}
        list_lengths: dict[str, int] = {}
        for _ in range(num_keys):
            name, kind = self._text(), int(self._number("I"))
            if kind == _LIST:
                list_lengths[name] = self._skip_list()
            else:
                values[name] = self._text() if kind == _TEXT else self._number(_FORMATS[kind])
        return GgufHeader(values, list_lengths, tuple(self._tensor() for _ in range(num_tensors)))

    def _number(self, code: str) -> int | float:
        number: int | float = struct.unpack("<" + code, self._file.read(struct.calcsize("<" + code)))[0]
        return number

    def _text(self) -> str:
        length = int(self._number("Q"))
        if length > _MAX_TEXT_BYTES:
            raise GgufError("a text in its header is too long")
        return self._file.read(length).decode("utf-8", errors="replace")

    def _skip_list(self) -> int:
        inner, length = int(self._number("I")), int(self._number("Q"))
        if inner == _LIST:  # in no published file
            raise GgufError("a list in its header holds lists")
        if length > _MAX_ENTRIES:
            raise GgufError("a list in its header is too long")
        if inner == _TEXT:
            for _ in range(length):
                self._text()
        else:
            self._file.seek(length * struct.calcsize("<" + _FORMATS[inner]), 1)
        return length

    def _tensor(self) -> GgufTensor:
        name, num_dimensions = self._text(), int(self._number("I"))
        if num_dimensions > _MAX_DIMENSIONS:
            raise GgufError("a tensor in its header has too many dimensions")
        shape = tuple(int(self._number("Q")) for _ in range(num_dimensions))
        self._number("I")
        return GgufTensor(name, shape, int(self._number("Q")))
