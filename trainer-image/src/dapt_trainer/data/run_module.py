"""A step that needs torch, in a process of its own, so that prepare never imports it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Finished:
    """How a helper ended."""

    returncode: int
    output: str
    last_error: str
    """The last line it wrote to standard error, cut to a sentence's length."""


def run_module(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], beat: Callable[[], None]
) -> Finished:
    """Run `python -m MODULE ARGUMENTS...`, with a heartbeat while it works; it does not outlive the call."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while True:
            try:
                output, errors = process.communicate(timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                beat()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return Finished(process.returncode, output, last[:160])
