"""Reads the settings of a pod from its environment; `dapt_contract.pod.environment` names the variables."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from dapt_contract.pod import environment as pod
from dapt_contract.pod.failure import FOREIGN_KEY
from dapt_contract.pod.preflight import PreflightBounds
from dapt_contract.signature import SIGNING_KEY_BYTES, key_digest
from dapt_trainer.errors import InputError
from dapt_trainer.pod.heartbeat import HANG_FLOOR_SECONDS

HANG_FLOOR = "DAPT_HANG_FLOOR_SECONDS"
"""Environment variable of the shortest silence that counts as a hang; for tests and stages of very short steps."""
_MARGIN_FRACTION = 0.15
"""Fraction of the grace period that is kept for writing the termination message."""


@dataclass(frozen=True)
class PodSettings:
    """Holds the folders, the peers and the time limits of one pod."""

    work: Path
    scratch: Path
    termination_log: Path
    progress_port: int
    """Port of the live progress; 0: any free one."""
    grace_seconds: float
    startup_timeout_seconds: float
    volume_bytes_per_second: float
    hang_floor_seconds: float
    nodes: int
    node_rank: int
    processes_per_node: int
    coordinator_host: str
    coordinator_port: int
    signing_key_file: Path | None
    signing_key_digests: tuple[str, ...] = ()
    """SHA-256 of each key that may be used, in hexadecimal; empty: any key of enough bytes may."""
    signing_secret: str = ""
    """Name of the Secret with the key."""
    peak_tflops: float = 0.0
    """Peak of one accelerator; 0 when it is unknown."""
    preflight: PreflightBounds = field(default_factory=PreflightBounds)
    node_name: str = ""
    """Name of the node; the pod's host name where it is unknown."""

    @property
    def peak_flops(self) -> float:
        """Return the peak of all ranks' accelerators together, in FLOP/s; 0 when it is unknown."""
        return self.peak_tflops * 1e12 * self.world_size

    @property
    def world_size(self) -> int:
        """Return the number of ranks over all nodes."""
        return self.nodes * self.processes_per_node

    @property
    def local_ranks(self) -> range:
        """Return the global ranks of this pod."""
        first = self.node_rank * self.processes_per_node
        return range(first, first + self.processes_per_node)

    @property
    def ranks_folder(self) -> Path:
        """Return the folder of the heartbeats and outcomes of this pod's ranks."""
        return self.scratch / f"ranks-{self.node_rank}"

    @property
    def shutdown_seconds(self) -> float:
        """Return the time between SIGTERM and SIGKILL for ranks: the grace period less the time for the message."""
        # After the grace period the kubelet kills the agent too, and a message that is not written by then is lost.
        return max(0.5, self.grace_seconds - max(1.0, self.grace_seconds * _MARGIN_FRACTION))

    def read_signing_key(self) -> bytes:
        """Return the key that signs checkpoints; empty for a stage that gets none.

        Raises:
            InputError: the Secret that is mounted has no key, a short one, or one that the operator did not make.
        """
        path = self.signing_key_file
        if path is None:
            return b""
        key = path.read_bytes() if path.is_file() else b""
        if key and len(key) < SIGNING_KEY_BYTES:
            raise InputError(
                f"{path}: the key for the signatures of checkpoints has {len(key)} bytes, and a key of less than "
                f"{SIGNING_KEY_BYTES} could be guessed, so it is not used: delete the Secret, then the operator makes "
                "it again"
            )
        if not key:
            raise InputError(
                f"the Secret mounted at {path.parent} has no entry {path.name!r} with a key, so it is not the one that"
                " the operator creates for the signatures of checkpoints: delete it, then the operator makes it again"
            )
        digest = key_digest(key)
        if self.signing_key_digests and digest not in self.signing_key_digests:
            raise InputError(
                f"Secret {self.signing_secret} {FOREIGN_KEY} (SHA-256 {digest[:12]}...): whoever made it could forge"
                " checkpoints and results, so it is not used: delete the Secret, and the operator makes its own again"
            )
        return key

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> PodSettings:
        """Return the settings that the environment holds.

        Raises:
            InputError: variables are missing or not a number; the error names each.
        """
        problems: list[str] = []

        def number(name: str, default: str) -> float:
            text = environment.get(name, default)
            try:
                return float(text)
            except ValueError:
                problems.append(
                    f"{name} is {text!r}, expected a number: the pod was not created by this operator"
                )
                return 0.0

        if not environment.get(pod.WORK_DIR):
            problems.append(f"{pod.WORK_DIR} is not set; it names the folder of the work volume")
        work = Path(environment.get(pod.WORK_DIR, "."))
        scratch = Path(environment.get(pod.SCRATCH_DIR) or work / ".scratch")
        key = environment.get(pod.SIGNING_KEY_FILE)
        try:
            preflight = PreflightBounds.model_validate_json(environment.get(pod.PREFLIGHT) or "{}")
        except ValidationError:
            text = environment[pod.PREFLIGHT]
            problems.append(
                f"{pod.PREFLIGHT} is {text!r}, expected bounds as JSON: set the profile's preflight"
            )
            preflight = PreflightBounds()
        settings = cls(
            work=work,
            scratch=scratch,
            termination_log=Path(environment.get(pod.TERMINATION_LOG, pod.TERMINATION_PATH)),
            progress_port=int(number(pod.PROGRESS_PORT, "0")),
            grace_seconds=number(pod.GRACE_SECONDS, "30"),
            startup_timeout_seconds=number(pod.STARTUP_TIMEOUT_SECONDS, "900"),
            volume_bytes_per_second=number(
                pod.VOLUME_BYTES_PER_SECOND, str(pod.DEFAULT_VOLUME_BYTES_PER_SECOND)
            ),
            hang_floor_seconds=number(HANG_FLOOR, str(HANG_FLOOR_SECONDS)),
            nodes=int(number(pod.NODES, "1")),
            node_rank=int(number(pod.NODE_RANK, "0")),
            processes_per_node=int(number(pod.PROCESSES_PER_NODE, "1")),
            coordinator_host=environment.get(pod.COORDINATOR_HOST, "127.0.0.1"),
            coordinator_port=int(number(pod.COORDINATOR_PORT, "29500")),
            signing_key_file=Path(key) if key else None,
            signing_key_digests=tuple(filter(None, environment.get(pod.SIGNING_KEY_DIGESTS, "").split(","))),
            signing_secret=environment.get(pod.SIGNING_SECRET, ""),
            peak_tflops=number(pod.PEAK_TFLOPS, "0"),
            preflight=preflight,
            node_name=environment.get(pod.NODE_NAME) or socket.gethostname(),
        )
        if problems:
            raise InputError(*problems)
        return settings


def is_loopback(host: str) -> bool:
    """Return whether a host is an address of the loopback interface, so that all ranks run on one machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
