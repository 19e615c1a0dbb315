"""Defines how many of a thing there are at most, where the API and the stages have the same bound."""

from __future__ import annotations

from typing import Final

MAX_CHECKPOINTS: Final = 50
"""Checkpoints of one attempt at most."""
MAX_ATTEMPTS: Final = 16
"""Attempts of pretraining at most; the API allows fewer rollbacks."""
MAX_ADAPTERS: Final = 2 * MAX_ATTEMPTS
"""Adapters of one model at most: one for each attempt on the way to it."""
MAX_SEQUENCE_RANKS: Final = 1024
"""Ranks of one sequence at most."""
