"""The loss curve: kept in the trainer's state, so that every checkpoint holds it up to its own step, and as a file.

`try-N/curve.jsonl` has one `CurvePoint` a line. A resumed try first writes the points up to its checkpoint, so the
newest file alone is the whole curve; points that a killed try trained past its last checkpoint are trained again and
stand in the new file as they were trained again.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dapt_contract.stages.pretrain import CurvePoint, PenaltyPoint
from dapt_trainer.training.step_trainer import StepReading

CURVE_FILE = "curve.jsonl"
STALL = "stall_seconds"
"""In the trainer's log: what saves and readings had taken so far."""
_WINDOW_STEPS = 20


class Journal:
    """Collects one point a step and writes it down.

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

    def note(self, reading: StepReading, seconds: float) -> CurvePoint:
        """Add a step; `seconds` is the training time of all tries so far that led to it."""
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

    @property
    def seconds_before(self) -> float:
        """Training seconds of the earlier tries, up to the resumed step."""
        return self._seconds_before

    @property
    def recent_tokens_per_second(self) -> float:
        """Over the last steps."""
        seconds = sum(seconds for _, seconds in self._recent)
        return sum(tokens for tokens, _ in self._recent) / seconds if seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of this try's training steps, without evaluations and saves; the first step, which warms up, is left out."""
        steady = self._step_seconds[1:] or self._step_seconds
        if not steady or not self._trained_tokens:
            return 0.0
        return self._trained_tokens / len(self._step_seconds) * len(steady) / sum(steady)

    @property
    def step_seconds_median(self) -> float:
        """Of this try's steps; 0 before the first."""
        return statistics.median(self._step_seconds) if self._step_seconds else 0.0


def stall_of(log_history: list[dict[str, Any]]) -> float:
    """Seconds that saves and readings had taken when the trainer's state was written; 0 before the first."""
    return max((float(entry[STALL]) for entry in log_history if STALL in entry), default=0.0)


def curve_of(log_history: list[dict[str, Any]]) -> tuple[CurvePoint, ...]:
    """The curve as the trainer's state keeps it."""
    return tuple(CurvePoint.model_validate(entry) for entry in log_history if "loss_nats" in entry)


def penalties_of(points: Sequence[CurvePoint]) -> tuple[PenaltyPoint, ...]:
    """The regularization's share of each step; empty without one."""
    return tuple(
        PenaltyPoint(step=point.step, penalty_nats=point.penalty_nats)
        for point in points
        if point.penalty_nats is not None
    )
