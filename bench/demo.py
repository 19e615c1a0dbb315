"""The demo's own figures: time, memory, and both perplexities of the chosen checkpoint, from a fresh run of it.

Installation is `make setup` and is not counted. The data is made before the clock starts, in a few seconds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
BAR_MINUTES = 15.0
BAR_MEMORY_GB = 10.0
BAR_DOMAIN_DECREASE = 0.25
BAR_GENERAL_INCREASE = 0.15
SAMPLE_SECONDS = 0.5


class PeakMemory(threading.Thread):
    """Largest sum of the proportional set sizes of a process and all below it, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self.peak_bytes = 0

    def run(self) -> None:
        """Sample until the process is gone. Shared pages count once: that is what PSS is for."""
        while True:
            total = 0
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:
                        continue
            except psutil.NoSuchProcess:
                return
            if total == 0:
                return
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(SAMPLE_SECONDS)


def figure(name: str, value: float, bar: float, *, at_most: bool) -> None:
    """One line of the bench."""
    good = value <= bar if at_most else value >= bar
    print(f"demo.{name} {value:.3f} {bar:g} {'ok' if good else 'short'}")


def main() -> int:
    """Run the demo in a folder of its own and print its figures."""
    data = ROOT / "examples/quickstart/data"
    subprocess.run(
        [sys.executable, ROOT / "examples/quickstart/make_data.py", "--out", data],
        check=True,
        stdout=sys.stderr,
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest = ROOT / "examples/quickstart/quickstart.yaml"
        copy = ROOT / "examples/quickstart/.bench.yaml"  # beside the data, with a destination of its own
        copy.write_text(
            manifest.read_text().replace("file://../../runs/quickstart/model", f"file://{folder}/model")
        )
        try:
            started = time.monotonic()
            command = [
                str(Path(sys.executable).with_name("dapt")),
                "run",
                str(copy),
                "--runs-dir",
                f"{folder}/runs",
            ]
            process = subprocess.Popen(command, stdout=sys.stderr)
            memory = PeakMemory(process.pid)
            memory.start()
            if process.wait() != 0:
                return 1
            minutes = (time.monotonic() - started) / 60
        finally:
            copy.unlink()
        memory.join()
        status: dict[str, Any] = YAML(typ="safe").load(next(Path(folder, "runs").glob("*/status.yaml")))[
            "status"
        ]
    selected = next(item for item in status["candidates"] if item["id"] == status["selected"]["id"])
    figure("minutes", minutes, BAR_MINUTES, at_most=True)
    figure("peak_memory_gb", memory.peak_bytes / 1e9, BAR_MEMORY_GB, at_most=True)
    decrease = selected["domainPerplexityDecrease"]
    figure("domain_perplexity_decrease_fraction", decrease, BAR_DOMAIN_DECREASE, at_most=False)
    figure("general_perplexity_increase_fraction", selected["forgetting"], BAR_GENERAL_INCREASE, at_most=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
