"""Tests that the allocator's settings are accepted; `bench.memory` shows what they save."""

from __future__ import annotations

import platform
import subprocess
import sys

PROGRAM = "from dapt_operator.runtime.allocator import keep_little; print(keep_little())"


def test_allocator_of_glibc_takes_the_settings() -> None:
    # In a process of its own, since they hold for the whole process and for good.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == f"{platform.libc_ver()[0] == 'glibc'}\n"
