"""Runs a pod of the tests: the real agent, with ranks whose stage program is `fake_stage`."""

from __future__ import annotations

import sys
from pathlib import Path

from dapt_trainer.__main__ import main

RANK = str(Path(__file__).with_name("rank.py"))

if __name__ == "__main__":
    sys.exit(main(worker=(RANK,)))
