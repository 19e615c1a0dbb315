"""First process of the node's own process and mount namespaces: containerd, then the kubelet.

It runs by `unshare`, so whatever ends it takes everything along: the kernel kills each process of the namespace (pods
too) and drops each mount. Nothing of the node is left on the machine, however its tests end.

Usage: python node_init.py PLAN.json (see `NodePlan`); writes `ready` into the plan's folder once images are imported
and the kubelet is started.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

PATIENCE_SECONDS = 60.0
MS_BIND = 4096


@dataclass(frozen=True)
class NodePlan:
    """What to start, as JSON between the two processes."""

    folder: str
    covered: list[tuple[str, str]]
    """Folders of the machine that are hidden by folders of ours: (ours, the machine's)."""
    containerd: list[str]
    socket: str
    """Of containerd."""
    archives: list[str]
    """Images to import."""
    kubelet: list[str]

    def write(self) -> Path:
        """Returns the file."""
        path = Path(self.folder) / "plan.json"
        path.write_text(json.dumps(asdict(self)))
        return path


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    code = libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, None)
    if code:
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {source} on {target}: {os.strerror(number)}")


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def _wait_for_runtime(plan: NodePlan, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while subprocess.run(
        ["ctr", "--address", plan.socket, "version"], capture_output=True, check=False
    ).returncode:
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit("containerd does not answer; see containerd.log")
        time.sleep(0.1)


def main(path: Path) -> None:
    """Start everything, then collect orphans until a signal comes or a program ends."""
    plan = NodePlan(**json.loads(path.read_text()))
    folder = Path(plan.folder)
    _mount("tmpfs", "/run", "tmpfs", 0)
    for ours, hidden in plan.covered:
        _mount(ours, hidden, None, MS_BIND)
    runtime = _start(plan.containerd, folder / "containerd.log")
    _wait_for_runtime(plan, runtime)
    for archive in plan.archives:
        subprocess.run(
            ["ctr", "--address", plan.socket, "--namespace", "k8s.io", "images", "import", archive],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    kubelet = _start(plan.kubelet, folder / "kubelet.log")
    (folder / "ready").touch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        ended, _ = os.wait()
        if ended in (runtime.pid, kubelet.pid):
            name = "containerd" if ended == runtime.pid else "kubelet"
            raise SystemExit(f"{name} ended; see {name}.log")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
