"""Starts the agent, the first process of a pod: `python -m dapt_trainer STAGE --config FILE --sha256 DIGEST`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dapt_contract.pod.credentials import without_secrets
from dapt_contract.stages import KINDS
from dapt_trainer.pod.agent import WORKER, run_agent


def main(arguments: Sequence[str] | None = None, worker: Sequence[str] = WORKER) -> int:
    """Run one stage in this pod and return the exit code; `worker` is the command of a rank, which tests replace."""
    parser = argparse.ArgumentParser(
        prog="python -m dapt_trainer", description="Run one stage of an adaptation."
    )
    parser.add_argument("stage", choices=sorted(KINDS), help="kind of stage")
    parser.add_argument("--config", type=Path, required=True, help="stage.json")
    parser.add_argument("--sha256", help="SHA-256 that stage.json must have")
    options = parser.parse_args(arguments)
    return run_agent(options.stage, options.config, options.sha256, worker)


if __name__ == "__main__":
    wanted = without_secrets(os.environ)
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ |= wanted
    sys.exit(main())
