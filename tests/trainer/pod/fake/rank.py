"""Runs a rank of the tests: the real worker with another map of stages."""

from __future__ import annotations

import sys
from pathlib import Path

from dapt_trainer.worker import end, main

if __name__ == "__main__":
    # A pod's processes do not find modules next to their script.
    sys.path.insert(0, str(Path(__file__).parent))
    end(main(modules={"publish": "fake_stage"}))
