"""Defines the preflight of a stage: what it accepts, and the numbers that it measures before a model is loaded.

The launcher writes the bounds into the pod's environment, rank 0 reports the numbers with its live readings.
"""

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from dapt_contract.base import Amount, Contract, Count
from dapt_contract.untrusted.printable import printable

MAX_PREFLIGHT_WARNINGS: Final = 8
MAX_PREFLIGHT_CHARACTERS: Final = 300
"""Of one warning, and of the name of a link."""

_Bound = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]
_Sentence = Annotated[str, Field(max_length=MAX_PREFLIGHT_CHARACTERS), AfterValidator(printable)]


class PreflightBounds(Contract):
    """Says what a preflight accepts. A bound that is absent is measured and not judged."""

    enabled: bool = True
    min_all_reduce_gib_per_second: _Bound | None = None
    min_point_to_point_gib_per_second: _Bound | None = None
    min_shared_memory_mib: _Bound | None = None
    min_write_mib_per_second: _Bound | None = None
    min_read_mib_per_second: _Bound | None = None
    max_clock_difference_seconds: _Bound | None = None


class PreflightReading(Contract):
    """Holds what a preflight has measured: of all ranks together, or of the worst one."""

    seconds: Amount = 0.0
    """How long it took."""
    all_reduce_bytes_per_second: Amount | None = None
    """Bus bandwidth of an all-reduce over all ranks: 2 (n - 1) / n x bytes / seconds. None: one rank."""
    point_to_point_bytes_per_second: Amount | None = None
    """Slowest link from one rank to another, while all links are in use. None: one rank."""
    slowest_link: _Sentence = ""
    """That link: its two ranks, with their nodes."""
    shared_memory_bytes: Count | None = None
    """Size of /dev/shm, on the node that has the least. None: a node has none."""
    write_bytes_per_second: Amount | None = None
    """Speed at which the slowest node writes to the work volume, to its disk. None: there was too little space."""
    read_bytes_per_second: Amount | None = None
    """Speed at which the slowest node reads from the work volume, without the cache where the kernel lets it go."""
    clock_difference_seconds: Amount | None = None
    """Largest difference between the clocks of two nodes. None: one node."""
    warnings: tuple[_Sentence, ...] = Field(default=(), max_length=MAX_PREFLIGHT_WARNINGS)
    """What is no reason to fail and slows the run down, or will."""
