"""Cleans text from pods, files and tenants of what would steer a terminal or show other text than is there.

Everything that leaves the program for people passes here: the terminal, logs, status and Events, metrics, the report
and the model card. What stays is text; a language that needs zero-width joiners keeps them.
"""

from __future__ import annotations

import re
from typing import Final

_SEQUENCES: Final = re.compile(
    # Colours, movements and the like; then titles, links and the clipboard, which end in BEL or ESC \. The bound keeps
    # a text of nothing but beginnings from being read once for each of them.
    "(?:\x1b\\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]{0,256}(?:\x07|\x1b\\\\|\x9c)"
)
_CHARACTERS: Final = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u00ad\u180e\u200b\u2060-\u2064\ufeff"  # seen by nobody
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # direction of writing
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations and tags
    "]"
)
_BREAKS: Final = re.compile("\r\n?|[\n\u2028\u2029]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text as one line: without control characters, escape sequences and characters of direction.

    Half of a surrogate pair, which cannot be written as UTF-8, becomes a question mark in a box.
    """
    return text if text.isprintable() else printable_lines(text).replace("\n", " ").replace("\t", " ")


def printable_lines(text: str) -> str:
    """Return the text cleaned like `printable`, with its line breaks as line feeds and with its tabs."""
    if text.isprintable():
        return text
    text = _BREAKS.sub("\n", _SEQUENCES.sub("", text))
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
