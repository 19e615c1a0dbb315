"""Keeps the loss curve in the trainer's state, so that every checkpoint has it up to its own step, and in a file.

`try-N/curve.jsonl` has one `CurvePoint` a line. A resumed run first writes the points up to its checkpoint, so the
newest file alone is the whole curve; steps that a killed run trained past its last checkpoint are trained again, and
the new file has the points of the second time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from dapt_contract.stages.pretrain import CurvePoint, PenaltyPoint
from dapt_trainer.checkpoints.run_checkpoints import LogEntry
from dapt_trainer.context import ReadingValue
from dapt_trainer.training.loss_watch import LossWatch
from dapt_trainer.training.step_trainer import StepReading

CURVE_FILE = "curve.jsonl"
STALL = "stall_seconds"
"""Key of the trainer's log for the seconds that saves and evaluations have taken so far."""
_WINDOW_STEPS = 20


class RunningMedian:
    """Keeps the median of all values so far; a value costs the logarithm of their number, not a sort of them."""

    def __init__(self) -> None:
        # The smaller half, negated since heapq has the least on top, and the larger half; it has at most one more.
        self._below: list[float] = []
        self._above: list[float] = []

    def add(self, value: float) -> None:
        """Add a value."""
        heapq.heappush(self._above, -heapq.heappushpop(self._below, -value))
        if len(self._above) > len(self._below) + 1:
            heapq.heappush(self._below, -heapq.heappop(self._above))

    @property
    def value(self) -> float:
        """Return the median; 0 before the first value."""
        if not self._above:
            return 0.0
        if len(self._above) > len(self._below):
            return self._above[0]
        return (self._above[0] - self._below[0]) / 2


class LossCurve:
    """Collects one point for each step and appends it to the file.

    Args:
        path: of the file; None on ranks that write nothing.
        watch: judges each step; it knows the earlier ones.
        earlier: the curve up to the resumed step.
    """

    def __init__(self, path: Path | None, watch: LossWatch, earlier: tuple[CurvePoint, ...] = ()) -> None:
        self.points: list[CurvePoint] = list(earlier)
        self.watch = watch
        self._median = RunningMedian()
        self._first_seconds: float | None = None
        self._steady_steps = 0
        self._steady_seconds = 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW_STEPS)
        self._trained_tokens = 0
        self._tokens_before = earlier[-1].tokens if earlier else 0
        self._seconds_before = earlier[-1].seconds if earlier else 0.0
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(point.model_dump_json() + "\n" for point in earlier), encoding="utf-8")

    @classmethod
    def of_run(
        cls,
        path: Path | None,
        log_history: Sequence[LogEntry],
        total_steps: int,
        *,
        judges_spikes: bool = True,
    ) -> LossCurve:
        """Return the curve of a run that resumes where the log of the trainer's state ends."""
        earlier = curve_of(log_history)
        watch = LossWatch(total_steps, judges_spikes=judges_spikes, earlier=earlier)
        return cls(path, watch, earlier)

    def add(self, reading: StepReading, seconds: float) -> CurvePoint:
        """Add a step and return its point; `seconds` is the training time of all runs that led to it."""
        previous = self.points[-1].tokens if self.points else 0
        self._recent.append((reading.tokens - previous, reading.seconds))
        self._median.add(reading.seconds)
        if self._first_seconds is None:
            self._first_seconds = reading.seconds
        else:
            self._steady_steps += 1
            self._steady_seconds += reading.seconds
        self._trained_tokens += reading.tokens - previous
        is_spike = self.watch.add(reading.step, reading.loss_nats, is_skipped=reading.is_skipped)
        point = CurvePoint(
            step=reading.step,
            loss_nats=reading.loss_nats,
            learning_rate=reading.learning_rate,
            gradient_norm=reading.gradient_norm,
            tokens=reading.tokens,
            seconds=round(seconds, 3),
            penalty_nats=reading.penalty_nats,
            skipped=reading.is_skipped,
            spike=is_spike,
        )
        self.points.append(point)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(point.model_dump_json() + "\n")
        return point

    def live_readings(
        self, reading: StepReading, total_steps: int, pauses_seconds: float = 0.0
    ) -> dict[str, ReadingValue]:
        """Return the live progress after a step that was added; `pauses_seconds` is still spent on checkpoints."""
        return {
            "activity": "training",
            "fraction": reading.step / total_steps,
            "total_steps": total_steps,
            "eta_seconds": (total_steps - reading.step) * self.step_seconds_median + pauses_seconds,
            "step": reading.step,
            "tokens": reading.tokens,
            "tokens_per_second": self.recent_tokens_per_second,
            "loss_nats": reading.loss_nats,
            "learning_rate": reading.learning_rate,
            "gradient_norm": reading.gradient_norm,
            "step_seconds": reading.seconds,
            "data_wait_seconds": reading.data_wait_seconds,
            "slow_rank": reading.slow_rank,
            "rank_paces": reading.rank_paces,
            "skipped_steps": self.watch.skipped_steps,
            "loss_spikes": self.watch.loss_spikes,
        }

    @property
    def seconds_before(self) -> float:
        """Return the training seconds of earlier runs, up to the resumed step."""
        return self._seconds_before

    @property
    def recent_tokens_per_second(self) -> float:
        """Return the training speed over the last steps."""
        seconds = sum(seconds for _, seconds in self._recent)
        return sum(tokens for tokens, _ in self._recent) / seconds if seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of this run's steps without evaluations and saves, and without the first, which warms up."""
        if not self._first_seconds or not self._trained_tokens:
            return 0.0
        if not self._steady_steps:
            return self._trained_tokens / self._first_seconds
        return self._trained_tokens / (self._steady_steps + 1) * self._steady_steps / self._steady_seconds

    @property
    def step_seconds_median(self) -> float:
        """Return the median duration of this run's steps; 0 before the first."""
        return self._median.value


def stall_of(log_history: Sequence[LogEntry]) -> float:
    """Return the seconds that saves and evaluations had taken when the trainer's state was written."""
    values = [entry.get(STALL) for entry in log_history]
    return max((float(value) for value in values if isinstance(value, int | float)), default=0.0)


def curve_of(log_history: Sequence[LogEntry]) -> tuple[CurvePoint, ...]:
    """Return the curve in the log of the trainer's state."""
    return tuple(CurvePoint.model_validate(entry) for entry in log_history if "loss_nats" in entry)


def penalties_of(points: Sequence[CurvePoint]) -> tuple[PenaltyPoint, ...]:
    """Return the penalty of each step; empty without a regularization."""
    return tuple(
        PenaltyPoint(step=point.step, penalty_nats=point.penalty_nats)
        for point in points
        if point.penalty_nats is not None
    )
