"""Publishes the state of a running rank: heartbeats for the agent, `/progress` and `/metrics` over HTTP.

Readings are for display only, so no failure here may end a run: a port that is taken costs only the live view.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import ValidationError

from dapt_contract.pod.progress import Progress
from dapt_contract.sentences import shortened
from dapt_contract.stage_file import StageFile
from dapt_contract.untrusted.bounded_server import BoundedServer
from dapt_contract.untrusted.printable import printable
from dapt_trainer.context import RankPace, ReadingValue
from dapt_trainer.errors import StopRequested
from dapt_trainer.linux import seconds_since_start
from dapt_trainer.pod.heartbeat import Heart
from dapt_trainer.pod.time_left import TimeLeft

logger = logging.getLogger(__name__)
HOST = "DAPT_PROGRESS_HOST"
"""Environment variable of the address to serve on; all addresses of the pod when unset."""
FLOPS_PER_TOKEN = "flops_per_token"
"""Measure that training stages report once: the arithmetic of one token, forward and backward."""
SELF_ESTIMATING_KINDS = ("pretrain", "finetune", "align")
"""Kinds of stage whose time left follows from their steps; the shares of their preparations are of something else."""
METRICS = {
    "loss": ("loss_nats", "Training loss of the last logged step, in nats a token."),
    "learning_rate": ("learning_rate", "Learning rate of the last logged step."),
    "gradient_norm": ("gradient_norm", "Norm of the gradient before clipping."),
    "step_seconds": ("step_seconds", "Seconds of the last optimizer step."),
    "data_wait_seconds": (
        "data_wait_seconds",
        "Seconds of the last optimizer step in which rank 0 waited for its rows.",
    ),
    "tokens_per_second": ("tokens_per_second", "Training speed over all ranks."),
    "mfu_ratio": ("mfu_ratio", "Share of the accelerators' peak FLOP/s that the model's arithmetic uses."),
    "skipped_steps": (
        "skipped_steps",
        "Steps whose loss or gradient was not a number: they changed no weight.",
    ),
    "loss_spikes": ("loss_spikes", "How often the loss rose far over those before it."),
    "checkpoint_seconds": ("checkpoint_seconds", "Seconds that the last checkpoint took."),
    "start_up_seconds": (
        "start_up_seconds",
        "Seconds from the start of the pod's process to the first work of its stage: a step, or a share that is done.",
    ),
    "start_up_cpu_seconds": (
        "start_up_cpu_seconds",
        "CPU seconds of rank 0 until then, most of them for imports.",
    ),
}
"""Prometheus gauges `dapt_trainer_NAME`, each with its field of `Board.update` and its help text."""
RANK_METRICS = {
    "rank_data_wait_seconds": (
        "data_wait_seconds",
        "Seconds of an optimizer step in which the rank waited for its rows, as a mean over the last steps.",
    ),
    "rank_forward_seconds": (
        "forward_seconds",
        "Seconds of an optimizer step that the rank took for its forward passes; under ZeRO 3 with waiting for peers.",
    ),
}
"""The same of each rank of a gang, with a field of `RankPace`."""
RANK_LABELS = ("rank", "node")
_MAX_SHOWN_RANKS, _MAX_LABEL_CHARACTERS = 4096, 253
"""Bounds of the page: ranks and nodes are what the other pods of the gang say of themselves."""


class Board:
    """Implements `ProgressBoard` for one rank."""

    def __init__(
        self, stage: StageFile, heart: Heart, peak_flops: float = 0.0, first_pid: int | None = None
    ) -> None:
        """Start with empty readings.

        Args:
            stage: that runs.
            heart: of this rank.
            peak_flops: peak of all accelerators in FLOP/s, 0 when unknown.
            first_pid: process with which the pod began; None: how long the stage takes to start is not measured.
        """
        self._heart = heart
        self._first_pid = first_pid
        self._peak_flops = peak_flops
        self._lock = threading.Lock()
        self._progress = Progress(run_key=stage.run.key, stage=stage.run.stage)
        self._measures: dict[str, float] = {}
        self._paces: tuple[RankPace, ...] = ()
        self._stop = threading.Event()
        self._is_stop_polled = False
        self._time_left = None if stage.kind in SELF_ESTIMATING_KINDS else TimeLeft()

    def update(self, **fields: ReadingValue) -> None:
        """Set fields of `Progress`, or measures that only `/metrics` shows; also a heartbeat. None: not known any more.

        A share without the time that is left gets an estimate, except of training, which knows the time of its steps.
        `step` counts optimizer steps (or batches, in stages that train nothing); the hang limit follows from their
        durations.
        """
        step = fields.get("step")
        self._heart.beat(int(step) if isinstance(step, int | float) else None)
        shown = {name: value for name, value in fields.items() if name in Progress.model_fields}
        if isinstance(shown.get("activity"), str):
            shown["activity"] = shortened(str(shown["activity"]), 200)
        if self._first_pid is not None and (step or fields.get("fraction")):
            self._measure_start_up(self._first_pid)
        fraction, time_left = fields.get("fraction"), self._time_left
        if time_left is not None and isinstance(fraction, int | float) and "eta_seconds" not in fields:
            shown["eta_seconds"] = time_left.seconds(float(fraction))
        with self._lock:
            for name in (name for name, value in fields.items() if value is None):
                self._measures.pop(name, None)
            self._measures |= {
                name: float(value) for name, value in fields.items() if isinstance(value, int | float)
            }
            if isinstance(paces := fields.get("rank_paces"), tuple):
                self._paces = tuple(pace for pace in paces if isinstance(pace, RankPace))
            try:
                # No decision depends on a reading, so an invalid one is dropped and never ends the stage.
                self._progress = Progress.model_validate(self._progress.model_dump() | shown)
            except ValidationError as error:
                logger.debug("dropped an invalid reading: %s", error)

    def _measure_start_up(self, first_pid: int) -> None:
        """Measure once what passed until the first work, and write it into the log, where it stays."""
        self._first_pid = None
        seconds, cpu_seconds = seconds_since_start(first_pid), time.process_time()
        if seconds is None:
            return
        logger.info("first work %.1f s after the start, %.1f s of CPU", seconds, cpu_seconds)
        with self._lock:
            self._measures |= {"start_up_seconds": seconds, "start_up_cpu_seconds": cpu_seconds}

    def heartbeat(self) -> None:
        """Report that this rank is making progress."""
        self._heart.beat()

    def stop_requested(self) -> bool:
        """Return whether this rank received SIGTERM."""
        self._is_stop_polled = True
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Note SIGTERM; interrupt a stage that has not polled `stop_requested` at the point that it has reached.

        Raises:
            StopRequested: the stage has not polled so far.
        """
        is_repeated = self._stop.is_set()
        self._stop.set()
        # A stage that polls saves first. Only the first signal interrupts: a second one, during the teardown that the
        # first one started, would replace its message.
        if not self._is_stop_polled and not is_repeated:
            raise StopRequested(
                "stop requested while nothing could be saved; the next run continues from what is complete"
            )

    @property
    def progress(self) -> Progress:
        """Return the last reading."""
        with self._lock:
            return self._progress

    @property
    def paces(self) -> tuple[RankPace, ...]:
        """Return the last times of each rank; empty with one rank."""
        with self._lock:
            return self._paces

    @property
    def measures(self) -> dict[str, float]:
        """Return the last numbers by field, with the share of the peak once its three numbers are known."""
        with self._lock:
            measures = dict(self._measures)
        speed, flops_per_token = measures.get("tokens_per_second"), measures.get(FLOPS_PER_TOKEN)
        if self._peak_flops and speed and flops_per_token:
            measures["mfu_ratio"] = speed * flops_per_token / self._peak_flops
        return measures


class _IPv6Server(BoundedServer):
    address_family = socket.AF_INET6


class DualStackServer(_IPv6Server):
    """Serves IPv4 and IPv6: a pod of an IPv6 cluster has no IPv4 address."""

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _bind(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> BoundedServer:
    """Return a server on one address, or on all of both families where the host is empty.

    Raises:
        OSError: the port is taken, or there is no such address.
    """
    if host:
        return (_IPv6Server if ":" in host else BoundedServer)((host, port), handler)
    if socket.has_dualstack_ipv6():
        # A kernel may support IPv6 while no interface has an IPv6 address: then binding it fails.
        with contextlib.suppress(OSError):
            return DualStackServer(("::", port), handler)
    return BoundedServer(("", port), handler)


def serve(board: Board, stage: StageFile, port: int) -> BoundedServer | None:
    """Serve `/progress` and `/metrics` from a thread; return None when the port cannot be bound."""
    pages: dict[str, Callable[[], tuple[str, bytes]]] = {
        "/progress": lambda: ("application/json", board.progress.model_dump_json(exclude_none=True).encode()),
        "/metrics": _metrics_page(board, stage),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self.send_error(404, "only /progress and /metrics exist")
                return
            content_type, content = page()
            with contextlib.suppress(ConnectionError):  # the client closed the connection; it polls again
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing: the operator polls every few seconds."""

    try:
        server = _bind(os.environ.get(HOST, ""), port, Handler)
    except OSError as error:
        logger.warning("cannot serve port %d (%s): no live progress of this run", port, error.strerror)
        return None
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    return server


def _metrics_page(board: Board, stage: StageFile) -> Callable[[], tuple[str, bytes]]:
    registry = CollectorRegistry()
    labels = {"namespace": stage.run.namespace, "name": stage.run.name}
    gauges = {
        field: Gauge(f"dapt_trainer_{name}", text, tuple(labels), registry=registry)
        for name, (field, text) in METRICS.items()
    }
    of_ranks = {
        field: Gauge(f"dapt_trainer_{name}", text, (*labels, *RANK_LABELS), registry=registry)
        for name, (field, text) in RANK_METRICS.items()
    }

    lock = threading.Lock()

    def page() -> tuple[str, bytes]:
        with lock:
            for field, value in board.measures.items():
                if field in gauges:
                    gauges[field].labels(**labels).set(value)
            for field, gauge in of_ranks.items():
                gauge.clear()  # a rank that is on another node now, or says so, has no second series
                for pace in board.paces[:_MAX_SHOWN_RANKS]:
                    node = shortened(printable(pace.node[:1000]), _MAX_LABEL_CHARACTERS)
                    gauge.labels(**labels, rank=str(pace.rank)[:10], node=node).set(getattr(pace, field))
            return CONTENT_TYPE_LATEST, generate_latest(registry)

    return page
