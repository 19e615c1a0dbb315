"""Defines the label of a token that no loss counts."""

from __future__ import annotations

from typing import Final

IGNORED_LABEL: Final = -100
"""Label of a token that is context alone: the index that torch's cross-entropy ignores by default."""
