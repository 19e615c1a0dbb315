"""What a running rank shows: heartbeats for the agent, `/progress` and `/metrics` for whoever watches.

Losing a reading loses nothing, so nothing here may end a run: a port that is taken costs the live view alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import ValidationError

from dapt_contract.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_trainer.context import Shown
from dapt_trainer.errors import StopRequested
from dapt_trainer.pod.heartbeat import Heart

logger = logging.getLogger(__name__)
HOST = "DAPT_PROGRESS_HOST"
"""Address to serve on; all of the pod's unless set."""
FLOPS_PER_TOKEN = "flops_per_token"
"""A measure that training stages tell once: the arithmetic of one token, forward and backward."""
METRICS = {
    "loss": ("loss_nats", "Training loss of the last logged step, in nats a token."),
    "learning_rate": ("learning_rate", "Learning rate of the last logged step."),
    "gradient_norm": ("gradient_norm", "Norm of the gradient before clipping."),
    "step_seconds": ("step_seconds", "Seconds of the last optimizer step."),
    "tokens_per_second": ("tokens_per_second", "Training speed over all ranks."),
    "mfu_ratio": ("mfu_ratio", "Share of the accelerators' peak FLOP/s that the model's arithmetic uses."),
    "checkpoint_seconds": ("checkpoint_seconds", "Seconds that the last checkpoint took."),
}
"""Prometheus gauges `dapt_trainer_NAME`: the field of `Board.update` behind each, and its help."""


class Board:
    """The `ProgressBoard` of one rank."""

    def __init__(self, stage: StageFile, heart: Heart, peak_flops: float = 0.0) -> None:
        """`peak_flops`: of all ranks' accelerators together, a second; 0 when it is not known."""
        self._heart = heart
        self._peak_flops = peak_flops
        self._lock = threading.Lock()
        self._progress = Progress(run_key=stage.run.key, stage=stage.run.stage)
        self._measures: dict[str, float] = {}
        self._stop = threading.Event()
        self._asked = False

    def update(self, **fields: Shown) -> None:
        """Set fields of `Progress`, or measures that only `/metrics` shows; also a heartbeat.

        `step` marks an optimizer step (or a batch, in stages that train nothing): hang limits follow from it.
        """
        step = fields.get("step")
        self._heart.beat(int(step) if isinstance(step, int | float) else None)
        known = {name: value for name, value in fields.items() if name in Progress.model_fields}
        if isinstance(known.get("activity"), str):
            known["activity"] = str(known["activity"])[:200]
        with self._lock:
            self._measures |= {
                name: float(value) for name, value in fields.items() if isinstance(value, int | float)
            }
            try:
                self._progress = Progress.model_validate(self._progress.model_dump() | known)
            except ValidationError as error:
                logger.debug("a reading was dropped: %s", error)

    def heartbeat(self) -> None:
        """This rank is alive and moving."""
        self._heart.beat()

    def stop_requested(self) -> bool:
        """Whether SIGTERM was seen by this rank."""
        self._asked = True
        return self._stop.is_set()

    def request_stop(self) -> None:
        """SIGTERM came. A stage that never asks whether to stop is interrupted where it is.

        Raises:
            StopRequested: the stage has not asked so far.
        """
        again = self._stop.is_set()
        self._stop.set()
        if not self._asked and not again:
            raise StopRequested(
                "asked to stop where nothing could be saved; the next try goes on from what was complete"
            )

    @property
    def progress(self) -> Progress:
        """The last reading."""
        with self._lock:
            return self._progress

    @property
    def measures(self) -> dict[str, float]:
        """The last numbers, by field; the share of the peak once its three numbers are known."""
        with self._lock:
            found = dict(self._measures)
        speed, work = found.get("tokens_per_second"), found.get(FLOPS_PER_TOKEN)
        if self._peak_flops and speed and work:
            found["mfu_ratio"] = speed * work / self._peak_flops
        return found


def serve(board: Board, stage: StageFile, port: int) -> ThreadingHTTPServer | None:
    """Serve `/progress` and `/metrics` from a thread; None when the port cannot be had."""
    pages: dict[str, Callable[[], tuple[str, bytes]]] = {
        "/progress": lambda: ("application/json", board.progress.model_dump_json(exclude_none=True).encode()),
        "/metrics": _metrics_page(board, stage),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self.send_error(404, "there are /progress and /metrics")
                return
            content_type, content = page()
            with contextlib.suppress(ConnectionError):  # a reader that gave up loses nothing
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Readings are not worth a line each."""

    try:
        server = ThreadingHTTPServer((os.environ.get(HOST, ""), port), Handler)
    except OSError as error:
        logger.warning("port %d cannot be served (%s): no live progress of this run", port, error.strerror)
        return None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    return server


def _metrics_page(board: Board, stage: StageFile) -> Callable[[], tuple[str, bytes]]:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    labels = {"namespace": stage.run.namespace, "name": stage.run.name}
    gauges = {
        field: Gauge(f"dapt_trainer_{name}", text, tuple(labels), registry=registry)
        for name, (field, text) in METRICS.items()
    }

    def page() -> tuple[str, bytes]:
        for field, value in board.measures.items():
            if field in gauges:
                gauges[field].labels(**labels).set(value)
        return CONTENT_TYPE_LATEST, generate_latest(registry)

    return page
