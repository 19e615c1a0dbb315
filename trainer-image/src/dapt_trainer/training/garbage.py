"""Keeps Python's garbage collector out of the optimizer steps.

A collection walks over every object that the libraries and the model have made, which takes a tenth of a second or
more, and it starts whenever one process has allocated enough: with many ranks some rank is always late, and all others
wait for it in the next collective.
"""

from __future__ import annotations

import gc
from types import TracebackType
from typing import Final, Self

STEPS_BETWEEN_COLLECTIONS: Final = 50
"""All ranks collect after the same steps, so that they wait once for all."""


class StepGarbage:
    """Collects between steps alone, while it is entered; what exists after the first step is not walked over again."""

    def __enter__(self) -> Self:
        self._was_enabled = gc.isenabled()
        self._num_steps = 0
        return self

    def after_step(self) -> None:
        """Collect where that is due."""
        if self._num_steps == 0:
            # Only now: the first step makes the engine's buffers and what is compiled.
            gc.collect()
            gc.freeze()
            gc.disable()
        elif self._num_steps % STEPS_BETWEEN_COLLECTIONS == 0:
            # Of all generations: few objects are younger than the first step.
            gc.collect()
        self._num_steps += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._num_steps:
            # Else a model that is dropped after the training would stay in memory.
            gc.unfreeze()
        if self._was_enabled:
            gc.enable()
