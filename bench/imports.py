"""What a command costs before it does anything: CPU seconds of short commands, memory of the operator's process.

    python -m bench.imports [--runs 5] [--modules 10]

Each command runs several times in a process of its own, and the figure is the least of its user and system seconds: a
clock would measure what else the machine does. A run that is not counted comes first and leaves the bytecode, which an
installation has from the start. `lint` and `plan` read examples/clinical.yaml. With `--modules` the
packages with the most modules in the operator are printed too, to see what a new import has brought.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

BAR_MIB = 80.0
ROOT = Path(__file__).parents[1]
MANIFEST = str(ROOT / "examples" / "clinical.yaml")
COMMANDS = {
    "cli.help_cpu_seconds": (["--help"], 0.2),
    "cli.lint_cpu_seconds": (["lint", MANIFEST], 0.3),
    "cli.plan_cpu_seconds": (["plan", MANIFEST, "-p", str(ROOT / "examples" / "profile-h100.yaml")], 0.3),
}
"""Figure -> the command's arguments, and the bar."""
DAPT = [sys.executable, "-c", "from dapt_operator.cli import main; main()"]
PROGRAM = """
import collections, sys
import dapt_operator.cli.app, dapt_operator.cli.commands.operator
import psutil
packages = collections.Counter(name.partition(".")[0] for name in sys.modules)
print(psutil.Process().memory_info().rss / 2**20)
print(*(f"{name} {number}" for name, number in packages.most_common()), sep="\\n")
"""


def main() -> int:
    """Measure in processes of their own and print; 0 when every bar is reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.imports")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--modules", type=int, default=0)
    options = parser.parse_args()
    for arguments, _ in COMMANDS.values():
        cpu_seconds(arguments)
    figures = [
        (name, min(cpu_seconds(arguments) for _ in range(options.runs)), bar)
        for name, (arguments, bar) in COMMANDS.items()
    ]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    memory, *packages = done.stdout.splitlines()
    for package in packages[: options.modules]:
        print(package, file=sys.stderr)
    figures.append(("operator.import_memory_mib", float(memory), BAR_MIB))
    for name, figure, bar in figures:
        print(f"{name} {figure:.3g} {bar:g} {'ok' if figure <= bar else 'short'}", flush=True)
    return 0 if all(figure <= bar for _, figure, bar in figures) else 1


def cpu_seconds(arguments: list[str]) -> float:
    """Return the user and system seconds of one `dapt` command.

    Raises:
        subprocess.CalledProcessError: the command failed, so that its time says nothing.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*DAPT, *arguments], stdout=subprocess.DEVNULL, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


if __name__ == "__main__":
    sys.exit(main())
