"""Writes texts of others into Markdown so that they stay text: no heading, link, image, HTML, table or formula."""

from __future__ import annotations

import re
from typing import Final

from dapt_contract.untrusted.printable import printable

_ACTIVE: Final = re.compile(r"[`*_\[\]<>|~&$]")
_BACKSLASH: Final = "&#92;"
"""As an entity: the hub takes two of them before a bracket for the beginning of a formula."""
_AT_START: Final = re.compile(r"[#+=-]|[0-9]{1,9}(?=[.)])")
"""What begins a heading, a line or a list where it begins a text."""
_ADDRESS: Final = re.compile(r"(?i)\b(https?|ftp)://|\bwww\.|(?<=\w)@(?=\w)")
"""What GitHub and the hub make a link of without any brackets."""


def plain(text: str) -> str:
    """Return a text as one line of Markdown that shows this very text and nothing else."""
    parts = printable(text).strip().split("\\")
    text = _BACKSLASH.join(_ACTIVE.sub(r"\\\g<0>", part) for part in parts)
    text = _ADDRESS.sub(lambda address: re.sub(r"[:.@]", r"\\\g<0>", address[0], count=1), text)
    first = _AT_START.match(text)
    if first is None:
        return text
    # A digit cannot be escaped: the dot behind it is.
    at = first.end() if first[0].isdigit() else 0
    return f"{text[:at]}\\{text[at:]}"


def code(text: str) -> str:
    """Return a text as a code span, in a fence of more backticks than it has in a row."""
    text = printable(text).strip()
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"
