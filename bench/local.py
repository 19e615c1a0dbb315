"""Idle time between the stages of a local run: from the end of one stage's last process to the start of the next one's.

A whole adaptation in miniature runs through `dapt run`; the times are the ones in the pods' own status.
"""

from __future__ import annotations

import datetime
import json
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


def stage_times(objects: Path) -> list[tuple[datetime.datetime, datetime.datetime]]:
    """First start and last end of the processes of each Job, in order."""
    jobs: dict[str, list[tuple[datetime.datetime, datetime.datetime]]] = {}
    for path in objects.glob("pod-*.json"):
        pod: Mapping[str, Any] = json.loads(path.read_text())
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        start, end = (datetime.datetime.fromisoformat(ended[name]) for name in ("startedAt", "finishedAt"))
        jobs.setdefault(pod["metadata"]["labels"]["job-name"], []).append((start, end))
    return sorted((min(start for start, _ in times), max(end for _, end in times)) for times in jobs.values())


def main() -> int:
    """Print the longest gap of a whole life."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_toy(Path(folder))
        dapt = Path(sys.executable).with_name("dapt")
        command = [str(dapt), "run", str(manifest), "--runs-dir", f"{folder}/runs", "--no-report"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        times = stage_times(next(Path(folder, "runs").glob("*/objects")))
    gaps = [(after - before).total_seconds() for (_, before), (after, _) in pairwise(times)]
    longest = max(gaps)
    print(f"{len(times)} stages; gaps in seconds: {', '.join(f'{gap:.3f}' for gap in gaps)}", file=sys.stderr)
    verdict = "ok" if longest < BAR_SECONDS else "short"
    print(f"local.idle_between_stages_seconds_max {longest:.3f} {BAR_SECONDS} {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
