"""What a pod's environment says (names in `dapt_contract.pod`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dapt_contract import pod
from dapt_trainer.errors import InputError
from dapt_trainer.pod.heartbeat import HANG_FLOOR_SECONDS

HANG_FLOOR = "DAPT_HANG_FLOOR_SECONDS"
"""Shortest silence that counts as a hang; for tests and for stages with very short steps."""
_MARGIN_FRACTION = 0.15
"""Share of the grace period that is kept for writing the termination message."""


@dataclass(frozen=True)
class PodSettings:
    """One pod: where things are, who its peers are, how long things may take."""

    work: Path
    scratch: Path
    termination_log: Path
    progress_port: int
    """0: any free one."""
    grace_seconds: float
    startup_timeout_seconds: float
    hang_floor_seconds: float
    nodes: int
    node_rank: int
    processes_per_node: int
    coordinator_host: str
    coordinator_port: int
    signing_key_file: Path | None
    peak_tflops: float = 0.0
    """Of one accelerator; 0 when nobody said."""

    @property
    def peak_flops(self) -> float:
        """Of all ranks' accelerators together, in FLOP/s; 0 when nobody said."""
        return self.peak_tflops * 1e12 * self.world_size

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.nodes * self.processes_per_node

    @property
    def local_ranks(self) -> range:
        """Global ranks of this pod."""
        first = self.node_rank * self.processes_per_node
        return range(first, first + self.processes_per_node)

    @property
    def ranks_folder(self) -> Path:
        """Heartbeats and outcomes of this pod's ranks."""
        return self.scratch / f"ranks-{self.node_rank}"

    @property
    def shutdown_seconds(self) -> float:
        """What ranks get between SIGTERM and SIGKILL: the grace period less the time for the last words."""
        return max(0.5, self.grace_seconds - max(1.0, self.grace_seconds * _MARGIN_FRACTION))

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> PodSettings:
        """Read the environment.

        Raises:
            InputError: a variable is missing or not a number; names every one.
        """
        problems: list[str] = []

        def number(name: str, default: str) -> float:
            text = environment.get(name, default)
            try:
                return float(text)
            except ValueError:
                problems.append(
                    f"{name} is {text!r}, expected a number: the pod was not made by this operator"
                )
                return 0.0

        if not environment.get(pod.WORK_DIR):
            problems.append(f"{pod.WORK_DIR} is not set; it names the folder of the work volume")
        work = Path(environment.get(pod.WORK_DIR, "."))
        scratch = Path(environment.get(pod.SCRATCH_DIR) or work / ".scratch")
        key = environment.get(pod.SIGNING_KEY_FILE)
        settings = cls(
            work=work,
            scratch=scratch,
            termination_log=Path(environment.get(pod.TERMINATION_LOG, pod.TERMINATION_PATH)),
            progress_port=int(number(pod.PROGRESS_PORT, "0")),
            grace_seconds=number(pod.GRACE_SECONDS, "30"),
            startup_timeout_seconds=number(pod.STARTUP_TIMEOUT_SECONDS, "900"),
            hang_floor_seconds=number(HANG_FLOOR, str(HANG_FLOOR_SECONDS)),
            nodes=int(number(pod.NODES, "1")),
            node_rank=int(number(pod.NODE_RANK, "0")),
            processes_per_node=int(number(pod.PROCESSES_PER_NODE, "1")),
            coordinator_host=environment.get(pod.COORDINATOR_HOST, "127.0.0.1"),
            coordinator_port=int(number(pod.COORDINATOR_PORT, "29500")),
            signing_key_file=Path(key) if key else None,
            peak_tflops=number(pod.PEAK_TFLOPS, "0"),
        )
        if problems:
            raise InputError(*problems)
        return settings
