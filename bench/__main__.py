"""Run every bench and keep what it printed, with the command and the machine, in bench/results/.

    python -m bench [NAME ...]
    python -m bench NAME ARGUMENT ...

With arguments of its own one bench is run, and the other figures of its file are kept as they are.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from pathlib import Path

import psutil

BENCHES = (
    "prepare",
    "pretrain",
    "stall",
    "regularization",
    "local",
    "operator",
    "quiet",
    "decide",
    "traffic",
    "peaks",
    "sizes",
    "imports",
    "startup",
    "grown",
    "hang",
    "demo",
)
WRITE_THEMSELVES = ("sizes",)
"""Their file of results is a table, which a test holds."""
WHEN_NAMED = ("gpu", "whole")
"""Run when they are named: one needs a GPU, the other takes long."""
FOLDER = Path(__file__).parent


def run(name: str, arguments: list[str]) -> list[str]:
    """The figure lines of one bench; its other output goes to standard error as it comes."""
    lines: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-m", f"bench.{name}", *arguments],
        cwd=FOLDER.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.rstrip().endswith((" ok", " short")):
            lines.append(line.rstrip())
            print(line, end="", flush=True)
        else:
            print(line, end="", file=sys.stderr, flush=True)
    if process.wait() != 0:
        lines.append(f"bench.{name}.failed 1 0 short")
        print(lines[-1], flush=True)
    return lines


def keep(path: Path, command: str, lines: list[str], *, adds: bool) -> None:
    """Write the figures with command, date and machine; `adds`: those of other names stay, with their notes."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    header = [f"# make bench ({command}), {today}", f"# {machine()}"]
    if adds and path.exists():
        names = {line.split()[0] for line in lines}
        earlier = path.read_text().splitlines()
        header = [*(line for line in earlier if line.split()[:1] and line.split()[0] not in names), *header]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(header + lines) + "\n")


def machine() -> str:
    """Processor, cores and memory in a line."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{model}, {psutil.cpu_count()} cores, {memory_gib:.0f} GiB, Python {platform.python_version()}{gpu()}"


def gpu() -> str:
    """The first GPU as its driver names it, after a comma; nothing without one."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", {answer.splitlines()[0]}" if answer.strip() else ""


def main() -> int:
    """Run the benches named on the command line, or all; nonzero when a figure is short."""
    names, arguments = sys.argv[1:] or list(BENCHES), list[str]()
    if names[0] in {*BENCHES, *WHEN_NAMED} and not {*names} <= {*BENCHES, *WHEN_NAMED}:
        names, arguments = names[:1], names[1:]
    unknown = set(names) - {*BENCHES, *WHEN_NAMED}
    if unknown:
        known = ", ".join((*BENCHES, *WHEN_NAMED))
        print(f"unknown bench {', '.join(sorted(unknown))}; there are {known}", file=sys.stderr)
        return 2
    short = False
    for name in names:
        lines = run(name, arguments)
        short |= any(line.endswith(" short") for line in lines)
        if name not in WRITE_THEMSELVES and lines:
            keep(
                FOLDER / "results" / f"{name}.txt", " ".join((name, *arguments)), lines, adds=bool(arguments)
            )
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
