"""Reads the headers of a Parquet file's pages, and decides how many rows are read at a time.

The footer's sizes are only what the writer says, and a page of a few bytes may hold a gigabyte: a dictionary has its
one long value a million times, and a compressed page unpacks to what its header says. So the headers of all pages of a
row group are read first, without unpacking any, and rows are read in batches that fit whatever these pages hold.

A page's header is a structure in Thrift's compact protocol (https://github.com/apache/parquet-format, parquet.thrift).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from dapt_trainer.data.reading.unpacked import BadFileError

if TYPE_CHECKING:
    from pyarrow.parquet import ColumnChunkMetaData, FileMetaData

MAX_PAGE_BYTES = 128 * 1024 * 1024
"""Largest page that is unpacked; writers make pages of 1 MiB, few of up to 100 MB."""
BATCH_BYTES = 64 * 1024 * 1024
"""What the values of one batch may take."""
_MAX_LIST_VALUES = 16_000_000
_MAX_LIST_BYTES = 512 * 1024 * 1024
"""Values and bytes in a column of lists in one row group: one row may have all of them."""
_MAX_WRITTEN_BYTES = 256 * 1024 * 1024
"""What all lists of a row group may have when the texts of dictionaries are written out."""
_MAX_LOOKED_INTO = 8 * 1024 * 1024
"""Largest dictionary whose values are looked at; writers stop at 1 MiB."""
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd", "LZ4_RAW": "lz4_raw"}
"""Names in pyarrow of the compressions of dictionaries that are looked at."""
_MAX_HEADER_BYTES = 1024 * 1024
_FIRST_HEADER_BYTES = 512
_MAX_PAGES = 1_000_000
_MAX_DEPTH = 16
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
"""Types of pages."""
_TYPE, _UNPACKED_BYTES, _PACKED_BYTES = 1, 2, 3
"""Fields of a page's header."""
_DETAILS = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}
"""By type of page: the field with its details, and the field with the encoding in these."""
_DICTIONARY_ENCODINGS, _DELTA_BYTE_ARRAY = (2, 8), 7
_BOOLEAN_TRUE, _BOOLEAN_FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12
"""Types of Thrift's compact protocol; 4, 5 and 6 are integers."""

Fields = dict[int, "int | Fields"]
"""Integers and structures of a header by the numbers of their fields."""


@dataclass(frozen=True)
class _Page:
    """Holds what the header of a page says."""

    type: int
    unpacked_bytes: int
    packed_bytes: int
    values: int
    encoding: int
    content_position: int
    """Of the first byte behind the header."""


@dataclass(frozen=True)
class GroupPlan:
    """Says how a row group is read so that it stays within bounds."""

    rows: int
    """At a time."""
    keeps_dictionaries: bool
    """Whether texts must stay in their dictionaries: written out, those of one row could fill the memory."""


def group_plan(
    stream: BinaryIO, metadata: FileMetaData, group: int, columns: Sequence[int], *, label: str, max_rows: int
) -> GroupPlan:
    """Return how a row group is to be read.

    Args:
        stream: the file.
        metadata: its footer.
        group: number of the row group.
        columns: numbers of the leaf columns that are read.
        label: name of the file, for messages.
        max_rows: upper bound.

    Raises:
        BadFileError: a page is too large, or a column of lists could hold too much in one row.
        ValueError: the header of a page is damaged.
    """
    bytes_a_row, bytes_of_lists = 1, 0
    for column in columns:
        schema, chunk = metadata.schema.column(column), metadata.row_group(group).column(column)
        place = f"{label}: row group {group + 1}, column {schema.path!r}"
        pages = _checked_pages(stream, chunk, place)
        dictionary = _largest_in_dictionary(stream, chunk, pages)
        bytes_a_row += max((_bytes_a_value(page, dictionary) for page in pages), default=0)
        if schema.max_repetition_level:
            _check_lists(pages, place)
            bytes_of_lists += sum(page.values * _bytes_a_value(page, dictionary) for page in pages)
    rows = max(1, min(max_rows, BATCH_BYTES // bytes_a_row))
    return GroupPlan(rows, keeps_dictionaries=bytes_of_lists > _MAX_WRITTEN_BYTES)


def _checked_pages(stream: BinaryIO, chunk: ColumnChunkMetaData, place: str) -> list[_Page]:
    pages = []
    for page in _pages(stream, chunk):
        if page.unpacked_bytes > MAX_PAGE_BYTES:
            raise BadFileError(
                f"{place}: has a page of {page.unpacked_bytes:,} bytes, and at most {MAX_PAGE_BYTES >> 20} MiB are "
                "read; write the file again with smaller pages"
            )
        pages.append(page)
    return pages


def _bytes_a_value(page: _Page, dictionary: int) -> int:
    """Return how many bytes a value of a page takes: at most, or on average where it stands there itself."""
    if page.type == _DICTIONARY:
        return 0
    if page.encoding in _DICTIONARY_ENCODINGS:
        return dictionary
    # A value in this encoding may repeat all of the one before it.
    return (
        page.unpacked_bytes
        if page.encoding == _DELTA_BYTE_ARRAY
        else page.unpacked_bytes // max(1, page.values)
    )


def _largest_in_dictionary(stream: BinaryIO, chunk: ColumnChunkMetaData, pages: Sequence[_Page]) -> int:
    """Return the bytes of the longest value in a column's dictionary, or an upper bound of them."""
    page = next((page for page in pages if page.type == _DICTIONARY), None)
    if page is None:
        return 0
    if chunk.physical_type != "BYTE_ARRAY":
        return page.unpacked_bytes // max(1, page.values)
    if page.unpacked_bytes > _MAX_LOOKED_INTO or chunk.compression not in _CODECS:
        return page.unpacked_bytes
    stream.seek(page.content_position)
    content = _unpacked(stream.read(page.packed_bytes), chunk.compression, page.unpacked_bytes)
    position = largest = 0
    while position + 4 <= len(content):
        length = int.from_bytes(content[position : position + 4], "little")
        largest, position = max(largest, length), position + 4 + length
    # What is damaged may be as long as all of the page.
    return largest if position == len(content) else page.unpacked_bytes


def _unpacked(content: bytes, compression: str, size: int) -> bytes:
    codec = _CODECS[compression]
    if codec is None:
        return content
    import pyarrow

    try:
        unpacked: bytes = pyarrow.decompress(content, size, codec=codec, asbytes=True)
    except (OSError, ValueError):
        return b"damaged"
    return unpacked


def _check_lists(pages: Sequence[_Page], place: str) -> None:
    """Refuse a column of lists of which one row could hold too much: how long its lists are is inside of the pages."""
    data = [page for page in pages if page.type != _DICTIONARY]
    values, content = sum(page.values for page in data), sum(page.unpacked_bytes for page in data)
    if values > _MAX_LIST_VALUES or content > _MAX_LIST_BYTES:
        raise BadFileError(
            f"{place}: has lists of {values:,} values and {content:,} bytes, and at most {_MAX_LIST_VALUES:,} values "
            f"and {_MAX_LIST_BYTES >> 20} MiB in a row group are read; write the file again with smaller row groups"
        )
    if any(page.encoding == _DELTA_BYTE_ARRAY for page in data):
        raise BadFileError(
            f"{place}: has lists in the encoding DELTA_BYTE_ARRAY, which are not read; write the file again with "
            "another encoding, such as the default of pyarrow"
        )


def _pages(stream: BinaryIO, chunk: ColumnChunkMetaData) -> Iterator[_Page]:
    """Yield the headers of a column's pages in a row group."""
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        position = min(position, chunk.dictionary_page_offset)
    end, values_left = position + chunk.total_compressed_size, chunk.num_values
    for _ in range(_MAX_PAGES):
        if values_left <= 0 or position >= end:
            return
        page = _page_at(stream, position)
        if min(page.unpacked_bytes, page.packed_bytes, page.values) < 0:
            raise ValueError("a page has a negative size")
        yield page
        values_left -= 0 if page.type == _DICTIONARY else page.values
        position = page.content_position + page.packed_bytes
    raise ValueError("a column has too many pages")


def _page_at(stream: BinaryIO, position: int) -> _Page:
    """Return the page whose header is at a position."""
    size = _FIRST_HEADER_BYTES
    while True:
        stream.seek(position)
        content = stream.read(size)
        reader = _Reader(content)
        try:
            fields = reader.structure()
            break
        except IndexError:
            # The largest and the smallest value may stand in a header.
            if len(content) < size or size >= _MAX_HEADER_BYTES:
                raise ValueError("the header of a page breaks off") from None
            size *= 16
    type_ = _number(fields, _TYPE)
    details_field, encoding_field = _DETAILS.get(type_, (0, 0))
    found = fields.get(details_field)
    details = found if isinstance(found, dict) else {}
    return _Page(
        type_,
        _number(fields, _UNPACKED_BYTES),
        _number(fields, _PACKED_BYTES),
        _number(details, 1),
        _number(details, encoding_field),
        position + reader.position,
    )


def _number(fields: Fields, field: int) -> int:
    value = fields.get(field, 0)
    return value if isinstance(value, int) else 0


class _Reader:
    """Reads a structure of Thrift's compact protocol; raises IndexError where the bytes end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def structure(self, depth: int = 0) -> Fields:
        """Return the integers and structures of a structure, by the numbers of their fields."""
        if depth > _MAX_DEPTH:
            raise ValueError("the header of a page is nested too deeply")
        fields: Fields = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            value = self._value(head & 15, depth)
            if value is not None:
                fields[field] = value
        return fields

    def _value(self, kind: int, depth: int) -> int | Fields | None:
        """Return an integer or a structure; skip anything else."""
        if kind in (_BOOLEAN_TRUE, _BOOLEAN_FALSE):
            return None
        if kind == _BYTE:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == _DOUBLE:
            self._skip(8)
        elif kind == _BINARY:
            self._skip(self._unsigned())
        elif kind == _STRUCT:
            return self.structure(depth + 1)
        else:
            # No header of a page has a list, a set or a map.
            raise ValueError("the header of a page is damaged")
        return None

    def _byte(self) -> int:
        value = self._content[self.position]
        self.position += 1
        return value

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self._content):
            raise IndexError

    def _unsigned(self) -> int:
        result = shift = 0
        while True:
            byte = self._byte()
            result |= (byte & 127) << shift
            if byte < 128:
                return result
            shift += 7
            if shift > 63:
                raise ValueError("the header of a page is damaged")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
