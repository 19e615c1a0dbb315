"""One map laid over another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dapt_operator.api.run import plain


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`: maps are merged, everything else is replaced."""
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        result[name] = (
            merged(below, value)
            if isinstance(value, Mapping) and isinstance(below, Mapping)
            else plain(value)
        )
    return result
