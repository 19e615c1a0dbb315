"""Cleans text from pods, files and tenants of what would steer a terminal or show other text than is there.

Everything that leaves the program for people passes here: the terminal, logs, status and Events, metrics, the report
and the model card. What stays is text; a language that needs zero-width joiners keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_SEQUENCES: Final = re.compile(
    # Colours, movements and the like; then titles, links and the clipboard, which end in BEL or ESC \. The bound keeps
    # a text of nothing but beginnings from being read once for each of them.
    "(?:\x1b\\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]{0,256}(?:\x07|\x1b\\\\|\x9c)"
)
INVISIBLE: Final = (
    (0x00, 0x08),
    (0x0B, 0x1F),
    (0x7F, 0x9F),  # control characters but tab and line feed
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x17B4, 0x17B5),
    (0x180E, 0x180E),
    (0x200B, 0x200B),
    (0x2060, 0x2065),
    (0xFEFF, 0xFEFF),
    (0xFFF0, 0xFFF8),  # hyphens, joiners and spaces without width, and what Unicode reserves for more of them
    (0x115F, 0x1160),
    (0x3164, 0x3164),
    (0xFFA0, 0xFFA0),
    (0x2800, 0x2800),  # letters of Hangul and a pattern of Braille that are drawn as nothing
    (0x61C, 0x61C),
    (0x200E, 0x200F),
    (0x202A, 0x202E),
    (0x2066, 0x206F),  # direction of writing
    (0xFFF9, 0xFFFB),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE00FF),
    (0xE01F0, 0xE0FFF),  # annotations, formats of shorthand and music, and tags
)
"""First and last of the characters that steer a terminal or are drawn as nothing, for regular expressions.

Unicode calls most of them default-ignorable. `str.isprintable` takes some for letters."""
JOINERS: Final = ((0x200C, 0x200D),)
SELECTORS: Final = ((0x180B, 0x180D), (0x180F, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
"""Choose the form of the character before them, as emoji and ideographs need: one of them, and a joiner behind it. More
are drawn as nothing, and can hold a text of their own."""


def character_class(ranges: Iterable[tuple[int, int]]) -> str:
    """Return ranges of characters as they stand between the brackets of a regular expression, as escapes."""
    return "".join(
        _escape(first) if first == last else f"{_escape(first)}-{_escape(last)}" for first, last in ranges
    )


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_JOINER: Final = character_class(JOINERS)
_SELECTOR: Final = character_class(SELECTORS)
_CHARACTERS: Final = re.compile(
    f"[{character_class(INVISIBLE)}]|(?<=[{_JOINER}])[{_JOINER}{_SELECTOR}]+|(?<=[{_SELECTOR}])[{_SELECTOR}]+"
)
_BLANK: Final = "\u2800"
"""Separates words in Braille."""
_BREAKS: Final = re.compile("\r\n?|[\n\u2028\u2029]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text as one line: without control characters, escape sequences and characters of direction.

    Half of a surrogate pair, which cannot be written as UTF-8, becomes a question mark in a box.
    """
    return printable_lines(text).replace("\n", " ").replace("\t", " ")


def printable_lines(text: str) -> str:
    """Return the text cleaned like `printable`, with its line breaks as line feeds and with its tabs."""
    if text.isascii() and text.isprintable():
        return text
    text = _BREAKS.sub("\n", _SEQUENCES.sub("", text)).replace(_BLANK, " ")
    return _SURROGATES.sub("\ufffd", _CHARACTERS.sub("", text))


def printable_values(value: object) -> object:
    """Return a JSON value with every text in it cleaned, the names of fields too."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_values(name): printable_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(item) for item in value]
    return value
