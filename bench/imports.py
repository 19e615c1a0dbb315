"""What the operator's process weighs before it does anything: its interpreter with all that it imports.

    python -m bench.imports [--modules 10]

With `--modules` it prints the packages with the most modules too, to see what a new import has brought.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

BAR_MIB = 80.0
PROGRAM = """
import collections, sys
import dapt_operator.cli.app, dapt_operator.cli.commands.operator
import psutil
packages = collections.Counter(name.partition(".")[0] for name in sys.modules)
print(psutil.Process().memory_info().rss / 2**20)
print(*(f"{name} {number}" for name, number in packages.most_common()), sep="\\n")
"""


def main() -> int:
    """Measure in a process of its own and print; 0 when the bar is reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.imports")
    parser.add_argument("--modules", type=int, default=0)
    options = parser.parse_args()
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    memory, *packages = done.stdout.splitlines()
    for package in packages[: options.modules]:
        print(package, file=sys.stderr)
    good = float(memory) <= BAR_MIB
    print(
        f"operator.import_memory_mib {float(memory):.1f} {BAR_MIB:g} {'ok' if good else 'short'}", flush=True
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
