"""Runs a step that needs torch in a process of its own, so that prepare itself never imports torch."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dapt_contract.sentences import shortened

_POLL_SECONDS = 2.0
_MAX_ERROR_CHARACTERS = 160
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception): .")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
"""Environment of a module that works on local files alone, and whose standard error holds errors alone."""


Beat = Callable[[], None]


@dataclass(frozen=True)
class Limits:
    """Holds what a process may take; the kernel ends one that takes more, whatever it is doing."""

    cpu_seconds: int
    address_bytes: int | None = None
    """Of its address space, files that are mapped included; None: any."""
    data_bytes: int | None = None
    """Of its own memory, without files that are mapped to be read; None: any."""

    def apply(self, pid: int) -> None:
        """Limit a process."""
        limits = (
            (resource.RLIMIT_CPU, self.cpu_seconds),
            (resource.RLIMIT_AS, self.address_bytes),
            (resource.RLIMIT_DATA, self.data_bytes),
        )
        for kind, limit in limits:
            if limit is not None:
                # SIGXCPU comes at the soft limit, SIGKILL at the hard one.
                resource.prlimit(pid, kind, (limit, limit + 5))


@dataclass(frozen=True)
class FinishedProcess:
    """Describes how a process ended."""

    returncode: int
    output: str
    last_error: str
    """First line of the last exception, or the last line of standard error, cut to a sentence's length."""

    @property
    def is_out_of_memory(self) -> bool:
        """Return whether the process was killed, which the kernel does when memory runs out."""
        return self.returncode in (-9, 137) and not self.is_out_of_time

    @property
    def is_out_of_time(self) -> bool:
        """Return whether the kernel ended the process for its processor time."""
        return self.returncode == -signal.SIGXCPU


def run_module(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    beat: Beat,
    limits: Limits | None = None,
) -> FinishedProcess:
    """Run `python -m MODULE ARGUMENTS...` to its end and call `beat` while it runs; kill it if `beat` raises."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if limits is not None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended
                limits.apply(process.pid)
        while True:
            try:
                # Not `wait`: it would never return once the process has filled one of its pipes.
                output, errors = process.communicate(timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                beat()
    finally:
        # `beat` raises at a stop request; the process must not go on writing after that.
        if process.poll() is None:
            process.kill()
            process.wait()
    return FinishedProcess(process.returncode, output, shortened(_last_error(errors), _MAX_ERROR_CHARACTERS))


def _last_error(errors: str) -> str:
    """Return the first line of the last exception in a process' errors, or their last line."""
    lines = [line.strip() for line in errors.strip().splitlines()]
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    return (exceptions or lines or ["no message"])[-1]
