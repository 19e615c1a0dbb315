"""Tells the revision of a hub's address from the path behind it: both may hold slashes.

`hf://ORG/NAME@feature/x/data` names the branch `feature/x` or the branch `feature`: the hub is asked, the shorter one
first, since git allows only one of the two. `refs/pr/1` has three parts, and `%2F` is a `/` within the revision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import unquote

Info = TypeVar("Info")
"""What the hub says of a repository at one revision."""

_MAX_REVISION_PARTS = 4
_PARTS_OF_A_REF = 3


def look_up(
    revision: str, rest: Sequence[str], info_at: Callable[[str | None], Info]
) -> tuple[Info, Sequence[str]]:
    """Return what the hub says at the revision, and the parts of the path behind it.

    Args:
        revision: what follows `@`, up to the first slash; empty for the default branch.
        rest: parts of the address behind that slash.
        info_at: asks the hub; raises what its client raises.

    Raises:
        RevisionNotFoundError: of the hub's client, for the shortest revision: no longer one exists either.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    if revision == "refs" and len(rest) >= _PARTS_OF_A_REF - 1:
        revision, rest = "/".join([revision, *rest[: _PARTS_OF_A_REF - 1]]), rest[_PARTS_OF_A_REF - 1 :]
    try:
        return info_at(unquote(revision) or None), rest
    except RevisionNotFoundError:
        for length in range(1, min(len(rest), _MAX_REVISION_PARTS) + 1):
            try:
                return info_at("/".join([revision, *rest[:length]])), rest[length:]
            except RevisionNotFoundError:
                continue
        raise
