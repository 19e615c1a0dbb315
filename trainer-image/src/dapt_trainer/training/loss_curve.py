"""Keeps the loss curve in the trainer's state, so that every checkpoint has it up to its own step, and in a file.

`try-N/curve.jsonl` has one `CurvePoint` a line. A resumed run first writes the points up to its checkpoint, so the
newest file alone is the whole curve; steps that a killed run trained past its last checkpoint are trained again, and
the new file has the points of the second time.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from dapt_contract.stages.pretrain import CurvePoint, PenaltyPoint
from dapt_trainer.checkpoints.run_checkpoints import LogEntry
from dapt_trainer.training.step_trainer import StepReading

CURVE_FILE = "curve.jsonl"
STALL = "stall_seconds"
"""Key of the trainer's log for the seconds that saves and evaluations have taken so far."""
_WINDOW_STEPS = 20


class LossCurve:
    """Collects one point for each step and appends it to the file.

    Args:
        path: of the file; None on ranks that write nothing.
        earlier: the curve up to the resumed step.
    """

    def __init__(self, path: Path | None, earlier: tuple[CurvePoint, ...] = ()) -> None:
        self.points: list[CurvePoint] = list(earlier)
        self._step_seconds: list[float] = []
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW_STEPS)
        self._trained_tokens = 0
        self._tokens_before = earlier[-1].tokens if earlier else 0
        self._seconds_before = earlier[-1].seconds if earlier else 0.0
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(point.model_dump_json() + "\n" for point in earlier), encoding="utf-8")

    def add(self, reading: StepReading, seconds: float) -> CurvePoint:
        """Add a step and return its point; `seconds` is the training time of all runs that led to it."""
        previous = self.points[-1].tokens if self.points else 0
        self._recent.append((reading.tokens - previous, reading.seconds))
        self._step_seconds.append(reading.seconds)
        self._trained_tokens += reading.tokens - previous
        point = CurvePoint(
            step=reading.step,
            loss_nats=reading.loss_nats,
            learning_rate=reading.learning_rate,
            gradient_norm=reading.gradient_norm,
            tokens=reading.tokens,
            seconds=round(seconds, 3),
            penalty_nats=reading.penalty_nats,
        )
        self.points.append(point)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(point.model_dump_json() + "\n")
        return point

    def live_readings(
        self, reading: StepReading, total_steps: int, pauses_seconds: float = 0.0
    ) -> dict[str, float | int | str | None]:
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
        steady = self._step_seconds[1:] or self._step_seconds
        if not steady or not self._trained_tokens:
            return 0.0
        return self._trained_tokens / len(self._step_seconds) * len(steady) / sum(steady)

    @property
    def step_seconds_median(self) -> float:
        """Return the median duration of this run's steps; 0 before the first."""
        return statistics.median(self._step_seconds) if self._step_seconds else 0.0


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
