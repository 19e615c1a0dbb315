"""Idle time between the stages of a local run, and the CPU time of each stage until it does its first work.

A whole adaptation in miniature runs through `dapt run`. A gap lasts from the end of one stage's last process to the
start of the next one's; the times are the ones in the pods' own status. What a stage takes to start is the line of its
log that rank 0 writes at the first step, or at the first share that is done: imports, joining, loading the toy model.
Its CPU seconds are compared with the bars, since a clock would measure what else the machine does.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.toy_adaptation import make_toy

BAR_SECONDS = 0.5
START_UP = re.compile(r"first work ([0-9.]+) s after the start, ([0-9.]+) s of CPU")
START_UP_BARS = {"pretrain": 8.0, "evaluate": 4.0}
"""Kind of stage -> most CPU seconds. Of evaluations all but the first count."""


def stage_times(objects: Path) -> list[tuple[datetime.datetime, datetime.datetime]]:
    """First start and last end of the processes of each Job, in order."""
    jobs: dict[str, list[tuple[datetime.datetime, datetime.datetime]]] = {}
    for path in objects.glob("pod-*.json"):
        pod: Mapping[str, Any] = json.loads(path.read_text())
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        start, end = (datetime.datetime.fromisoformat(ended[name]) for name in ("startedAt", "finishedAt"))
        jobs.setdefault(pod["metadata"]["labels"]["job-name"], []).append((start, end))
    return sorted((min(start for start, _ in times), max(end for _, end in times)) for times in jobs.values())


def start_ups(logs: Path) -> dict[str, list[tuple[float, float]]]:
    """Return (seconds, CPU seconds) until the first work of each run, by kind of stage, in order."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(logs.glob("*-0.log"), key=lambda path: path.stat().st_mtime):
        kind = next((kind for kind in START_UP_BARS if f"-{kind}" in path.name), None)
        line = START_UP.search(path.read_text(errors="replace"))
        if kind is not None and line is not None:
            found.setdefault(kind, []).append((float(line[1]), float(line[2])))
    return found


def main() -> int:
    """Print the longest gap of a whole life, and the longest start of each kind of stage."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_toy(Path(folder))
        dapt = Path(sys.executable).with_name("dapt")
        command = [str(dapt), "run", str(manifest), "--runs-dir", f"{folder}/runs", "--no-report"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        times = stage_times(next(Path(folder, "runs").glob("*/objects")))
        started = start_ups(next(Path(folder, "runs").glob("*/logs")))
    gaps = [(after - before).total_seconds() for (_, before), (after, _) in pairwise(times)]
    longest = max(gaps)
    print(f"{len(times)} stages; gaps in seconds: {', '.join(f'{gap:.3f}' for gap in gaps)}", file=sys.stderr)
    verdict = "ok" if longest < BAR_SECONDS else "short"
    print(f"local.idle_between_stages_seconds_max {longest:.3f} {BAR_SECONDS} {verdict}")
    for kind, bar in START_UP_BARS.items():
        runs = started[kind][1:] if kind == "evaluate" and len(started[kind]) > 1 else started[kind]
        print(f"{kind}: seconds and CPU seconds of each start: {started[kind]}", file=sys.stderr)
        cpu_seconds = max(cpu_seconds for _, cpu_seconds in runs)
        verdict = "ok" if cpu_seconds <= bar else "short"
        print(f"local.{kind}_start_up_cpu_seconds {cpu_seconds:.2f} {bar:g} {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
