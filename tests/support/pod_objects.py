"""Pods of the tests: the real agent in a process of its own, with ranks that run the fake stage."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from dapt_contract.pod.message import StageMessage, decode_message
from support.launch_builders import FAKE_POD, stage_run
from support.ports import free_port

PATIENCE_SECONDS = 60.0
"""When a test gives up waiting; nothing is asserted about time."""


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def listening(pid: int) -> list[tuple[str, str]]:
    """Return (command, address) of each TCP socket on which a process or one of its descendants listens."""
    found = []
    for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended
            command = " ".join(process.cmdline())
            found += [
                (command, connection.laddr.ip)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            ]
    return found


@dataclass
class Pod:
    """One node's agent."""

    folder: Path
    process: subprocess.Popen[bytes]
    progress_port: int

    @property
    def work(self) -> Path:
        return self.folder.parent / "work"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def text(self) -> str:
        return (self.folder / "termination-log").read_text()

    @property
    def message(self) -> StageMessage:
        return decode_message(self.text)

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE_SECONDS)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def rank_pids(self) -> list[int]:
        """Process ids of the ranks, in the order of their ranks."""
        import json

        files = sorted((self.folder / "scratch").glob("ranks-*/heartbeat-*.json"))
        return [int(json.loads(file.read_text())["pid"]) for file in files]


def start_pod(
    base: Path,
    script: str,
    *,
    nodes: int = 1,
    node: int = 0,
    processes: int = 1,
    coordinator: int = 0,
    grace: float = 20,
    sha256: str | None = None,
    kind: str = "publish",
    **environment: str,
) -> Pod:
    """Start the agent of one node; `base` is the run, with `work` in it."""
    folder = base / f"node-{node}"
    folder.mkdir(parents=True, exist_ok=True)
    (base / "work").mkdir(exist_ok=True)
    run = stage_run(script, nodes=nodes, processes=processes)
    content = run.stage_file.model_dump_json().encode()
    config = folder / "stage.json"
    config.write_bytes(content)
    port = free_port()
    variables = {
        "DAPT_WORK": str(base / "work"),
        "DAPT_SCRATCH": str(folder / "scratch"),
        "DAPT_TERMINATION_LOG": str(folder / "termination-log"),
        "DAPT_PROGRESS_PORT": str(port),
        "DAPT_PROGRESS_HOST": "127.0.0.1",
        "DAPT_GRACE_SECONDS": str(grace),
        "DAPT_STARTUP_TIMEOUT_SECONDS": "60",
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(processes),
        "PET_NODE_RANK": str(node),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(coordinator or free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    digest = sha256 or hashlib.sha256(content).hexdigest()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(FAKE_POD), kind, "--config", str(config), "--sha256", digest],
            env=dict(os.environ) | variables | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Pod(folder, process, port)


def run_pod(base: Path, script: str, **options: object) -> tuple[int, Pod]:
    """Start a pod and wait for its end."""
    pod = start_pod(base, script, **options)  # type: ignore[arg-type]
    return pod.wait(), pod


def stop(pod: Pod) -> int:
    pod.signal(signal.SIGTERM)
    return pod.wait()
