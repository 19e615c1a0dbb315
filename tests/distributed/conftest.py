"""Shares unbroken gangs with which several tests compare theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.toy_gang import Gang, run_gang
from support.toy_training import make_work_volume


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Gang]:
    """Return the gang that ran to its end with these changes on so many ranks; each is run once. Read it only."""
    known: dict[str, Gang] = {}

    def gang(changes: dict[str, Any], *, ranks: int = 2) -> Gang:
        key = json.dumps([changes, ranks], sort_keys=True, default=repr)
        if key not in known:
            work = make_work_volume(tmp_path_factory.mktemp("unbroken"))
            known[key] = run_gang(work, 1, changes, ranks=ranks)
        return known[key]

    return gang
