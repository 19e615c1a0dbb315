"""Imports kopf as if the Kubernetes client library were not installed.

kopf imports that library, where it finds it, to accept its classes in places that the operator does not use. That loads
the classes of all models: 65 MiB. Without it kopf works the same. All of the operator imports kopf from here.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

__all__ = ["kopf"]


@contextlib.contextmanager
def _not_installed(name: str) -> Iterator[None]:
    """Let imports of a library fail, unless it is loaded already: then nothing is saved by it."""
    if name in sys.modules:
        yield
        return
    # As documented in "The import system": with None as its entry, importing a module raises ModuleNotFoundError.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with _not_installed("kubernetes"):
    import kopf
