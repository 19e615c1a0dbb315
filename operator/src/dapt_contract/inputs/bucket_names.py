"""Knows what a bucket may be called that is written to: the libraries accept more, and fail when they write."""

from __future__ import annotations

import re
from typing import Final

_NAMES: Final = {
    "s3": (
        r"(?!.*\.\.)(?!\d+\.\d+\.\d+\.\d+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
        "lower-case letters, digits, '.' and '-'",
    ),
    "gs": (
        r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]",
        "lower-case letters, digits, '.', '_' and '-'",
    ),
}
"""By scheme: the names as a pattern and as text."""


def bucket_fault(address: str) -> str:
    """Return why no bucket has the name in an address, and what to do; empty where one may have, or there is none."""
    scheme, _, rest = address.partition("://")
    if scheme not in _NAMES:
        return ""
    bucket = rest.partition("/")[0]
    pattern, characters = _NAMES[scheme]
    if re.fullmatch(pattern, bucket):
        return ""
    return (
        f"{bucket!r} is no name of a bucket: 3 characters or more of {characters}, a letter or digit first and last;"
        " write the bucket's name"
    )
