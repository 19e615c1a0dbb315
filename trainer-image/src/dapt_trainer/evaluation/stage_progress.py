"""Shows the progress of a stage that measures several parts one after the other, and stops it when requested."""

from __future__ import annotations

import time
from collections.abc import Callable

from dapt_trainer.context import ProgressBoard
from dapt_trainer.errors import StopRequested
from dapt_trainer.evaluation.scoring import Advance


class Parts:
    """Computes from the share done of each part the share done of all, and estimates the time left."""

    def __init__(
        self,
        board: ProgressBoard,
        count: int,
        *,
        any_rank: Callable[[float], float] = float,
        after_stop: str = "measures again",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        board: gets the readings.
        count: number of parts, which are assumed to take equally long.
        any_rank: returns the maximum of a number over all ranks; a collective, so all ranks call it equally often.
        after_stop: what the next run does after a stop.
        clock: returns seconds.
        """
        self._board = board
        self._count = count
        self._any_rank = any_rank
        self._after_stop = after_stop
        self._clock = clock
        self._started = clock()
        self._done = 0

    def begin(self, activity: str) -> Advance:
        """Start the next part and return the function that takes the share done of that part.

        Raises:
            StopRequested: from the returned function, when any rank received SIGTERM.
        """
        before = self._done
        self._done += 1
        self._board.update(activity=activity, fraction=min(1.0, before / self._count))

        def advance(fraction: float) -> None:
            if self._any_rank(float(self._board.stop_requested())):
                raise StopRequested(f"stopped during {activity}; the next run {self._after_stop}")
            overall = min(1.0, (before + fraction) / self._count)
            elapsed = self._clock() - self._started
            self._board.update(
                fraction=overall, eta_seconds=elapsed * (1.0 - overall) / overall if overall else None
            )

        return advance
