"""Progress of a stage that does several things one after the other, and the one place where it may be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable

from dapt_trainer.context import ProgressBoard
from dapt_trainer.errors import StopRequested
from dapt_trainer.evaluation.scoring import Advance


class Parts:
    """Turns the share done of each part into the share done of all, with an estimate of the time left."""

    def __init__(
        self,
        board: ProgressBoard,
        count: int,
        *,
        any_rank: Callable[[float], float] = float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        board: gets the readings.
        count: parts, taken as equally long.
        any_rank: the maximum of a number over all ranks; called as often on each of them.
        clock: seconds.
        """
        self._board = board
        self._count = count
        self._any_rank = any_rank
        self._clock = clock
        self._started = clock()
        self._done = 0

    def begin(self, activity: str) -> Advance:
        """Start the next part; what it returns gets the share done of that part.

        Raises:
            StopRequested: from the returned function, when any rank was asked to stop.
        """
        before = self._done
        self._done += 1
        self._board.update(activity=activity, fraction=min(1.0, before / self._count))

        def advance(fraction: float) -> None:
            if self._any_rank(float(self._board.stop_requested())):
                raise StopRequested(f"asked to stop while {activity}; the next try measures again")
            overall = min(1.0, (before + fraction) / self._count)
            elapsed = self._clock() - self._started
            self._board.update(
                fraction=overall, eta_seconds=elapsed * (1.0 - overall) / overall if overall else None
            )

        return advance
