"""Compile what DeepSpeed compiles at its first use, so that no run waits for a compiler.

`python -m dapt_trainer.training.warm_up` is part of the installation; TORCH_EXTENSIONS_DIR names the shared cache.
"""

from __future__ import annotations

import os
import sys
import time


def main() -> int:
    """Build and load the CPU op for collectives over shared memory; nothing to do where an accelerator is used."""
    if os.environ.get("DS_ACCELERATOR") != "cpu":
        return 0
    started = time.monotonic()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)
    print(f"DeepSpeed's CPU op is ready after {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
