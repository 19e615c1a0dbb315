"""A hung rank: how long until it is noticed, and until the gang trains again.

A toy adaptation runs through `dapt run`; in mid-training one of its two ranks is stopped (SIGSTOP), so that its peer
waits in a collective that never comes back. The limit is a minute without a step, the agent's own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.toy_adaptation import make_toy

LIMIT_SECONDS = 60.0
NOTICED_BAR_SECONDS = LIMIT_SECONDS + 5.0
"""The limit, the interval between two looks of the agent, and what one beat may be late."""
AGAIN_BAR_SECONDS = 90.0
PATIENCE_SECONDS = 300.0


def heartbeats(run: Path, try_number: int) -> list[dict[str, object]]:
    """Last beats of pretraining's ranks in the newest try, once there are so many tries."""
    jobs = sorted(run.glob("objects/job-*-pretrain-*.json"), key=lambda path: path.stat().st_mtime)
    names = [json.loads(path.read_text())["metadata"] for path in jobs]
    wanted = [m["name"] for m in names if m["labels"]["dapt.dev/try"] == str(try_number)]
    found = []
    for name in wanted:
        for path in run.glob(f"pods/{name}*/**/heartbeat-*.json"):
            try:
                found.append(json.loads(path.read_text()) | {"rank": int(path.stem.rpartition("-")[2])})
            except ValueError:
                continue  # just being written
    return found


def wait_for(process: subprocess.Popen[bytes], holds: object, what: str) -> float:
    """When it held, on the monotonic clock."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"waited in vain for {what}; `dapt run` ended with {process.poll()}")
        time.sleep(0.02)
    return time.monotonic()


def main() -> int:
    """Print both times."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_toy(Path(folder), steps=2000, checkpoints=4)
        run = Path(folder, "runs", "toy")
        dapt = Path(sys.executable).with_name("dapt")
        command = [str(dapt), "run", str(manifest), "--runs-dir", f"{folder}/runs", "--no-report"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(process, lambda: len([b for b in heartbeats(run, 1) if b["stepped"]]) >= 2, "training")
            time.sleep(1)
            victim = next(b for b in heartbeats(run, 1) if b["rank"] == 1)
            subprocess.run(["kill", f"-{signal.SIGSTOP.value}", str(victim["pid"])], check=True)
            begun = time.monotonic()
            logs = run / "logs"
            noticed = wait_for(
                process,
                lambda: any("counts as hung" in path.read_text() for path in logs.glob("*pretrain*.log")),
                "the agent's word",
            )
            again = wait_for(
                process, lambda: any(b["stepped"] for b in heartbeats(run, 2)), "the second try's first step"
            )
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    for name, seconds, bar in (
        ("hang.noticed_seconds", noticed - begun, NOTICED_BAR_SECONDS),
        ("hang.noticed_to_training_seconds", again - noticed, AGAIN_BAR_SECONDS),
    ):
        print(f"{name} {seconds:.1f} {bar:g} {'ok' if seconds <= bar else 'short'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
