"""Provides the structural schema of each kind of manifest, as `make crds` has generated it from the models.

Messages about a manifest need it in every `dapt lint` and every reconcile. To generate it takes longer than all the
rest of such a check, so it is part of the package, and a test compares it with the models.
"""

from __future__ import annotations

import json
import pkgutil
from functools import cache
from typing import Any, Final

FILE: Final = "manifest_schema.json"
"""Lies next to this module."""


def manifest_schema(kind: str) -> dict[str, Any]:
    """Return the schema of a DomainAdaptation or an AdaptationProfile without its status, which nobody writes.

    Callers share one value and do not change it.
    """
    return _schemas()[kind]


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    content = pkgutil.get_data(__package__, FILE)
    if content is None:  # no loader can lack it that has loaded this module
        raise FileNotFoundError(FILE)
    schemas: dict[str, dict[str, Any]] = json.loads(content)
    return schemas
