"""Ranks that run stages and note how far their memory grew.

What is measured is the kernel's mark of the largest resident set, which is set back before a stage, less the resident
set at that moment: that is what a process is killed for. It counts what tensors do not show as well (the buffers of
gloo and of the matrix library, mapped files), and what was allocated and never written it does not count. So that it
follows the tensors, glibc is made to give each block of 64 KiB or more a mapping of its own, which a free returns; left
alone it keeps freed blocks of up to 32 MiB. The stage runs on a toy first, in the same process: libraries, threads and
their buffers are there already.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import re
from pathlib import Path
from typing import Any

from dapt_trainer.context import SilentProgress
from dapt_trainer.stages import STAGE_MODULES
from support.toy_training import make_context

M_MMAP_THRESHOLD = -3
SMALLEST_MAPPING_BYTES = 1 << 16


def resident_bytes(mark: str) -> int:
    """A line of /proc/self/status: VmRSS is the resident set, VmHWM the largest one since it was set back."""
    found = re.search(rf"^{mark}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


class PeakBoard(SilentProgress):
    """Notes the peak up to the end of the first step, which also loads, and of the steps after it.

    What saves is not part of a training's estimate.
    """

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.before = resident_bytes("VmRSS")
        self.growths: list[int] = []
        self._set_back()

    def update(self, **fields: Any) -> None:
        if fields.get("activity") == "training":
            self.note()

    def note(self) -> None:
        """Note the growth since the last call."""
        self.growths.append(resident_bytes("VmHWM") - self.before)
        self._set_back()

    def _set_back(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")


def measure_rank(rank: int, world_size: int, kind: str, toy: Path, large: Path, config: Any) -> int:
    """Run a stage on the toy, then on the larger model; leave the growth in `large`."""
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALLEST_MAPPING_BYTES)
    for number, volume in enumerate((toy, large), start=1):
        board = PeakBoard()
        context = make_context(
            volume,
            volume / f"scratch-{rank}",
            config,
            kind=kind,
            try_number=number,
            rank=rank,
            world_size=world_size,
            progress=board,
        )
        importlib.import_module(STAGE_MODULES[kind]).run(config, context)
        if not board.growths:  # a stage that trains nothing
            board.note()
    found = {"before_bytes": board.before, "growths_bytes": board.growths}
    (large / f"memory-{rank}.json").write_text(json.dumps(found))
    return 0
