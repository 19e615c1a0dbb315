"""Watches the loss of a training: skipped steps, spikes, and when either means that the run has diverged.

A step whose gradient is not a number changes no weight, so one of them costs one batch and nothing else. Several in a
row do not stop by themselves, and many in a run show that its numbers are at their limit: both are divergence.

A spike is a loss far over those before it. One may be a batch of odd text; a loss that spikes again soon, or does not
come back, has left its course (Chowdhery et al. 2022, section 5.1, restart from about 100 steps before a spike). The
window follows the points of the curve alone, so a resumed run judges as the unbroken one does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from dapt_contract.stages.pretrain import CurvePoint

SKIPPED_IN_A_ROW: Final = 3
"""Skipped steps in a row that are divergence."""
SKIPPED_FRACTION: Final = 0.01
"""Share of all steps of the run that may be skipped; at least `SKIPPED_IN_A_ROW` may, whatever the length."""
SPIKE_SIGMAS: Final = 6.0
WINDOW_STEPS: Final = 100
"""Losses that mean and standard deviation are taken of; those of a spike are left out."""
FEWEST_STEPS: Final = 20
"""Losses in the window before any is judged."""
SMALLEST_SIGMA_FRACTION: Final = 0.005
"""Least standard deviation, as a share of the mean: losses of large batches differ by less than what matters."""
SPIKES: Final = 3
"""Spikes within `MEMORY_STEPS` that are divergence."""
MEMORY_STEPS: Final = 200
LONGEST_SPIKE_STEPS: Final = 20
"""Steps in a row over the bound that are divergence: the loss does not come back."""


class LossWatch:
    """Counts skipped steps and spikes, and says when a run has diverged.

    Args:
        total_steps: of the run.
        judges_spikes: False for a loss that is no mean over text, such as that of preference pairs, which has outliers
            by its nature.
        earlier: the curve up to the resumed step.
    """

    def __init__(
        self, total_steps: int, *, judges_spikes: bool = True, earlier: Iterable[CurvePoint] = ()
    ) -> None:
        self.skipped_steps = 0
        self.loss_spikes = 0
        self.divergence = ""
        """Why the run has diverged, as the end of a sentence; empty while it has not."""
        self._most_skipped = max(SKIPPED_IN_A_ROW, math.floor(SKIPPED_FRACTION * total_steps))
        self._judges_spikes = judges_spikes
        self._skipped_in_a_row = 0
        self._steps_over = 0
        self._starts: deque[int] = deque(maxlen=SPIKES)
        self._window: deque[float] = deque(maxlen=WINDOW_STEPS)
        for point in earlier:
            self._count(point.step, point.loss_nats, is_skipped=point.skipped)

    def add(self, step: int, loss_nats: float, *, is_skipped: bool) -> bool:
        """Count a step and set `divergence`; return whether a spike starts at it."""
        is_spike = self._count(step, loss_nats, is_skipped=is_skipped)
        self.divergence = self._reason()
        return is_spike

    def _count(self, step: int, loss_nats: float, *, is_skipped: bool) -> bool:
        if is_skipped or not math.isfinite(loss_nats):
            self.skipped_steps += 1
            self._skipped_in_a_row += 1
            return False
        self._skipped_in_a_row = 0
        if not (self._judges_spikes and loss_nats > self._bound()):
            self._window.append(loss_nats)
            self._steps_over = 0
            return False
        self._steps_over += 1
        if self._steps_over > 1:
            return False
        self.loss_spikes += 1
        self._starts.append(step)
        return True

    def _bound(self) -> float:
        """Return the loss that a spike is over, in nats."""
        if len(self._window) < FEWEST_STEPS:
            return math.inf
        mean = math.fsum(self._window) / len(self._window)
        # Not `statistics.pstdev`, which adds fractions: it took a millisecond of each step.
        sigma = math.sqrt(
            math.fsum((loss - mean) * (loss - mean) for loss in self._window) / len(self._window)
        )
        return mean + SPIKE_SIGMAS * max(sigma, SMALLEST_SIGMA_FRACTION * abs(mean))

    def _reason(self) -> str:
        if self._skipped_in_a_row >= SKIPPED_IN_A_ROW:
            return f"{self._skipped_in_a_row} steps in a row had a loss or gradient that is not a number"
        if self._skipped_in_a_row and self.skipped_steps > self._most_skipped:
            return (
                f"{self.skipped_steps} steps had a loss or gradient that is not a number, more than "
                f"{self._most_skipped}"
            )
        if not self._steps_over:
            return ""
        # The window is as it was when the step was judged: a loss over the bound is left out of it.
        rise = f"the loss rose over {self._bound():.6g} nats (mean + {SPIKE_SIGMAS:g} sigma)"
        if self._steps_over >= LONGEST_SPIKE_STEPS:
            return f"{rise} and stayed there for {self._steps_over} steps"
        if self._steps_over == 1 and len(self._starts) == SPIKES:
            length_steps = self._starts[-1] - self._starts[0] + 1
            if length_steps <= MEMORY_STEPS:
                return f"{rise} for the {SPIKES}rd time in {length_steps} steps"
        return ""
