"""CPU seconds that a rank takes until its stage's program can begin: its interpreter with all that it imports.

    python -m bench.startup [--packages 10]

User and system time of the process, so that other work on the machine counts little. A training rank joins its process
group too, which is what imports DeepSpeed. With `--packages` the packages with the most modules are printed as well.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys

BARS = {"evaluate": 4.0, "pretrain": 8.0}
REPEATS = 3
PROGRAM = """
import collections, gc, importlib, sys
import dapt_trainer.worker
from dapt_trainer.stages import STAGE_MODULES
gc.disable()
importlib.import_module(STAGE_MODULES[sys.argv[1]])
if sys.argv[1] == "pretrain":
    from dapt_trainer.distributed import join_ranks
    join_ranks(0, 0, 1)
    import deepspeed
packages = collections.Counter(name.partition(".")[0] for name in sys.modules)
print(*(f"{name} {number}" for name, number in packages.most_common()), sep="\\n")
"""


def cpu_seconds(kind: str) -> tuple[float, list[str]]:
    """User and system seconds of one process, and its packages by their number of modules."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "DAPT_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return seconds, done.stdout.splitlines()


def main() -> int:
    """Measure each stage some times and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup")
    parser.add_argument("--packages", type=int, default=0)
    options = parser.parse_args()
    for kind, bar in BARS.items():
        measured = [cpu_seconds(kind) for _ in range(REPEATS)]
        for package in measured[0][1][: options.packages]:
            print(kind, package, file=sys.stderr)
        seconds = statistics.median(found for found, _ in measured)
        verdict = "ok" if seconds <= bar else "short"
        print(f"startup.{kind}_cpu_seconds {seconds:.2f} {bar:g} {verdict}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
