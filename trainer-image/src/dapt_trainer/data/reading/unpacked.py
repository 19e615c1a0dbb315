"""Opens files of a source and unpacks them; whatever is wrong with their bytes is one sentence."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Protocol

from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.reading.sources import SourceFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem

MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer line is no record. Analysing a document takes up to 300 times its bytes, so a longer one would fill the
memory."""
MAX_SKIPPED_BYTES = 1 << 30
"""Of one line that is too long. A file with holes has lines of exabytes and takes no space, and nothing is seen of the
progress in one."""
MAX_UNPACKED_RATIO, ALWAYS_UNPACKED_BYTES = 1000, 64 * 1024 * 1024
"""How much a file may unpack to: a multiple of its size, and a number of bytes that is always allowed. Text packs to a
tenth, and what is repeated without end to a ten-thousandth."""
MIN_SINGLE_BYTES, SINGLE_BYTES_DIVISOR = 64 * 1024, 16
"""How many bytes of a gzip file may be names, comments and padding, which Python reads one by one: a number, and a part
of the file's size."""
_WINDOW_PHRASE = "requires too much memory"
"""Of the message of Zstandard about a window over 128 MiB."""
_BUFFER_BYTES = 1024 * 1024
_UTF16_BEGINNINGS = (b"\xff\xfe", b"\xfe\xff")
_UTF32_BEGINNINGS = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
_OTHER_BEGINNINGS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PAR1": "Parquet",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"%PDF": "PDF",
}
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": "git-lfs, not the content; fetch it with `git lfs pull`",
    b"/annex/objects/": "git-annex, not the content; fetch it with `git annex get`",
}
LARGEST_POINTER_BYTES = 1024


class BadFileError(Exception):
    """Ends the reading of a file; the message is a sentence without the field of the manifest."""


@contextmanager
def open_unpacked(filesystem: AbstractFileSystem, file: SourceFile) -> Iterator[BinaryIO]:
    """Open a file of a source for reading its unpacked bytes.

    Raises:
        BadFileError: the file cannot be opened or read to its end, or is damaged.
    """
    try:
        refuse_pointer(filesystem, file)
        with filesystem.open(file.path, "rb") as raw:
            if file.compression == ".gz":
                yield _buffered(gzip.GzipFile(fileobj=_GzipBytes(raw, file), mode="rb"), file)
            elif file.compression == ".zst":
                yield _buffered(_zstandard_stream(raw), file)
            elif _is_local(filesystem):
                yield raw
            else:
                # An object store's own file reads a line byte block by byte block, and knows no limit of a line.
                yield io.BufferedReader(raw, buffer_size=_BUFFER_BYTES)
    except BadFileError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise BadFileError(
            f"{file.label}: cannot be opened ({error.strerror or first_line(error)}); check the file and its "
            "permissions"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        if _WINDOW_PHRASE in str(error):
            raise BadFileError(
                f"{file.label}: was packed with a window over 128 MiB (zstd --long), which would take as much memory; "
                "pack it again without that option"
            ) from error
        raise BadFileError(
            f"{file.label}: breaks off or is damaged ({type(error).__name__}: {first_line(error)}); copy it again"
        ) from error
    except Exception as error:  # every object store raises exceptions of its own
        if _is_local(filesystem):
            raise
        raise BadFileError(
            f"{file.label}: cannot be read to its end ({type(error).__name__}: {first_line(error)}); check the network "
            "and the credentials"
        ) from error


def refuse_pointer(filesystem: AbstractFileSystem, file: SourceFile) -> None:
    """Refuse a file that only says where its content is: as text it would be trained on.

    Raises:
        BadFileError: it is a pointer of git-lfs or git-annex.
    """
    if file.size_bytes > LARGEST_POINTER_BYTES:
        return
    with filesystem.open(file.path, "rb") as stream:
        content = stream.read(LARGEST_POINTER_BYTES)
    owner = pointer_owner(content)
    if owner is not None:
        raise BadFileError(f"{file.label}: a pointer of {owner}")


def pointer_owner(content: bytes) -> str | None:
    """Return whose pointer a file is by its content, and what to do; None for other files."""
    return next((owner for beginning, owner in _POINTERS.items() if content.startswith(beginning)), None)


def other_format(beginning: bytes) -> str | None:
    """Return the name of the binary format that a file's beginning shows; None where it shows none."""
    if beginning[_TAR_MARK_AT:].startswith(_TAR_MARK):
        return "tar"
    return next((name for magic, name in _OTHER_BEGINNINGS.items() if beginning.startswith(magic)), None)


def refuse_other_text(file: SourceFile, beginning: bytes) -> None:
    """Refuse a file of JSON that is no UTF-8 text, by its first bytes.

    Raises:
        BadFileError: it is UTF-16, packed, or empty space.
    """
    format_name = other_format(beginning)
    if format_name is not None:
        raise BadFileError(f"{file.label}: not JSON lines but {format_name}; unpack it, or correct its name")
    if beginning and not beginning.strip(b"\0"):
        raise BadFileError(f"{file.label}: holds zero bytes, as a copy that broke off; copy it again")
    encoding = other_encoding(beginning[:64])
    if encoding is not None:
        raise BadFileError(
            f"{file.label}: not UTF-8 but {encoding} text; convert it (iconv -f {encoding} -t UTF-8)"
        )


def _is_local(filesystem: AbstractFileSystem) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def lines_of(stream: BinaryIO, label: str) -> Iterator[bytes | None]:
    r"""Yield the lines of a stream, which end with \n and with nothing else; None for a line that is too long.

    Raises:
        BadFileError: a line does not end within `MAX_SKIPPED_BYTES`; `label` names the file in it.
    """
    read_line = stream.readline
    while line := read_line(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        skipped = len(line)
        while line and not line.endswith(b"\n"):
            line = read_line(MAX_LINE_BYTES)
            skipped += len(line)
            if skipped > MAX_SKIPPED_BYTES:
                raise BadFileError(
                    f"{label}: has a line of more than {MAX_SKIPPED_BYTES >> 20:,} MiB, so it is no file of records; "
                    "remove it, or write each record on a line of its own"
                )
        yield None


def other_encoding(beginning: bytes) -> str | None:
    """Return UTF-16 or UTF-32 for a text of this beginning, by its byte order mark or its many zero bytes."""
    if beginning.startswith(_UTF32_BEGINNINGS):
        return "UTF-32"
    if beginning.startswith(_UTF16_BEGINNINGS) or 4 * beginning.count(b"\0") >= max(4, len(beginning)):
        return "UTF-16"
    return None


class UnpackedLimit:
    """Counts what a file has unpacked to, and refuses one that grows without bounds."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._limit = max(ALWAYS_UNPACKED_BYTES, MAX_UNPACKED_RATIO * file.size_bytes)
        self._count = 0

    def add(self, count: int) -> None:
        """Count further bytes.

        Raises:
            BadFileError: they are too many for a file of this size.
        """
        self._count += count
        if self._count > self._limit:
            raise BadFileError(
                f"{self._file.label}: unpacks to more than {MAX_UNPACKED_RATIO:,} times its {self._file.size_bytes:,} "
                "bytes, which no text does; give its text in another form, or remove the file"
            )


class _GzipBytes:
    """Reads the packed bytes of a gzip file, and refuses one that is made of headers and padding."""

    def __init__(self, raw: BinaryIO, file: SourceFile) -> None:
        self._raw = raw
        self._file = file
        self._num_left = MIN_SINGLE_BYTES + file.size_bytes // SINGLE_BYTES_DIVISOR

    def read(self, count: int = -1, /) -> bytes:
        # The only reads of one byte: they look for the end of a name, a comment or the zeros behind a member.
        if count == 1:
            self._num_left -= 1
            if self._num_left < 0:
                raise BadFileError(
                    f"{self._file.label}: more than {MIN_SINGLE_BYTES:,} bytes and a sixteenth of it are names, "
                    "comments and padding of gzip; pack its text again in one piece"
                )
        return self._raw.read(count)

    def seekable(self) -> bool:
        return False

    def seek(self, _offset: int, /) -> int:
        raise io.UnsupportedOperation("a gzip file is read from its beginning to its end")


class _Readable(Protocol):
    """Describes what unpacks a file: at most `count` bytes a call, none at the end."""

    def read(self, count: int, /) -> bytes: ...


def _zstandard_stream(raw: BinaryIO) -> _Readable:
    """Return the unpacked bytes of Zstandard frames.

    pyarrow's stream unpacks no more than is asked for, raises for a file that breaks off, and takes windows of up to
    128 MiB as the zstd tool does; that of the zstandard library ends without an error where the last frame is cut off.
    """
    import pyarrow

    stream: _Readable = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return stream


def _buffered(stream: _Readable, file: SourceFile) -> BinaryIO:
    return io.BufferedReader(_Unpacking(stream, UnpackedLimit(file)), buffer_size=_BUFFER_BYTES)


class _Unpacking(io.RawIOBase):
    """Reads unpacked bytes piece by piece, within the limit of their file."""

    def __init__(self, stream: _Readable, limit: UnpackedLimit) -> None:
        super().__init__()
        self._stream = stream
        self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer)
        content = self._stream.read(min(len(target), _BUFFER_BYTES))
        self._limit.add(len(content))
        target[: len(content)] = content
        return len(content)
