"""Shortens sentences for people: a cut is visible and never within a word."""

from __future__ import annotations

from typing import Final

CUT_MARK: Final = "..."


def shortened(text: str, max_characters: int) -> str:
    """Return the text; where it is longer than the limit, its first whole words and `...`, within the limit.

    A word that alone is longer than the limit, such as a path, is cut all the same.
    """
    if len(text) <= max_characters:
        return text
    num_kept = max_characters - len(CUT_MARK)
    if num_kept <= 0:
        return ""
    # With the character after the last kept one: a word that just fits stays.
    end_of_word = text.rfind(" ", 0, num_kept + 1)
    kept = text[:end_of_word] if end_of_word > 0 else text[:num_kept]
    return kept.rstrip(" ,;:.(\n") + CUT_MARK


def shortened_to_bytes(text: str, max_bytes: int) -> str:
    """Return the text cut like `shortened`, with at most `max_bytes` as UTF-8."""
    if len(text.encode(errors="replace")) <= max_bytes:
        return text
    # No character takes less than a byte: cut to the characters that fit, then drop words until the bytes fit too.
    fitting = text.encode(errors="replace")[:max_bytes].decode(errors="ignore")
    shorter = shortened(text, len(fitting))
    while len(shorter.encode(errors="replace")) > max_bytes:
        shorter = shortened(text, len(shorter) - 1)
    return shorter
