"""Signs what a run writes on the work volume with the key of its adaptation, which no volume holds."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

SIGNING_KEY_BYTES: Final = 32
"""Of the key that the operator makes; a shorter one could be guessed, and is never used."""


def key_digest(key: bytes) -> str:
    """Return the hexadecimal SHA-256 of a key, by which it is recognized. It does not help to guess a random key."""
    return hashlib.sha256(key).hexdigest()


class ShortKeyError(ValueError):
    """Reports a key that must not be used to sign or to check a signature."""


def signature_of(text: str, key: bytes) -> str:
    """Return the hexadecimal HMAC-SHA256 of a text.

    Raises:
        ShortKeyError: the key has less than `SIGNING_KEY_BYTES` bytes.
    """
    if len(key) < SIGNING_KEY_BYTES:
        raise ShortKeyError(
            f"the signing key has {len(key)} bytes, and must have {SIGNING_KEY_BYTES} or more"
        )
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def is_same_text(found: str, expected: str) -> bool:
    """Return whether two signatures are equal, in constant time: one of them anybody may have written."""
    # As bytes: of texts, only those in ASCII can be compared.
    return hmac.compare_digest(found.encode(errors="replace"), expected.encode(errors="replace"))
