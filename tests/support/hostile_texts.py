"""Texts of compromised pods and of tenants, each with the word `visible`, and what must not leave the program."""

from __future__ import annotations

import unicodedata

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
INVISIBLE = (
    "\u200b\u2060\u2065\ufeff\u2028\u2029\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufff0\U0001bca0\U0001d173"
    "\U000e0041\U000e0fff"
)
JOINING = "\u200c\u200d"
SELECTING = "\u180b\ufe00\ufe01\ufe02\ufe0f\U000e0100\U000e01ef"
HOSTILE_TEXTS = (
    "\x1b[2J\x1b[Hvisible",
    "\x1b[31mvisible\x1b[0m",
    "\x1b]0;title\x07visible",
    "\x1b]8;;http://evil.example\x1b\\visible\x1b]8;;\x1b\\",
    "\x1b]52;c;ZXZpbA==\x07visible",
    "\x1bPq#0visible",
    "\x9b2Jvisible",
    "\x9d0;title\x9cvisible",
    "a\x00b\x07c\x08\x08\x08visible",
    "\rvisible",
    "line\nvisible",
    "tab\tvisible",
    "\x7f\x85visible",
    f"{DIRECTIONS}visible",
    "\u200b\u2060\ufeff\u00advisible",
    "\u2028\u2029visible",
    "\ud800visible\udfff",
    "\U000e0041\U000e0042visible",
    "\u115f\u1160\u3164\uffa0\u2800visible",
    "\u034f\u17b4\u17b5\u2065\ufff0\U0001bca0\U0001d173\U000e0fffvisible",
    "visible\ufe0f\ufe01\ufe02\U000e0100\U000e01ef",
    "visible\u200c\u200d\u200d\ufe00\u200c",
    "\x1b[?1049hvisible\x1bc",
    "[red]visible[/red] [link=http://evil.example]x[/link] [/]",
    "<script>alert(1)</script><img src=x onerror=alert(1)>visible",
    "![visible](http://evil.example/x.png) [visible](javascript:alert(1))",
    "visible`code`\n\n# heading\n\n---\nlicense: mit\n---\n",
)


def assert_inert(text: str) -> None:
    """Fail where a text holds a character that steers a terminal, changes directions, or cannot be written."""
    found = [
        f"{character!r} in {text[max(0, index - 20) : index + 20]!r}"
        for index, character in enumerate(text)
        if (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t")
        or character in DIRECTIONS
        or character in INVISIBLE
        or (character in SELECTING and text[index - 1 : index] in [*JOINING, *SELECTING])
        or (character in JOINING and text[index - 1 : index] in [*JOINING])
    ]
    assert not found, found[:3]
    text.encode()
