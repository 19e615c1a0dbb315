"""Fingerprints the local files that tuning data and evaluation items are read from.

The planner compares them as it compares the spec: files that were corrected in place are other data, and are read again
before the stage that consumes them starts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final

from dapt_contract.envelope import digest_of
from dapt_contract.inputs.source_files import local_files
from dapt_operator.stage_run import Manifest

FILE_SCHEME: Final = "file://"
BLOCKS: Final = ("finetuning", "preference", "evaluation")
"""Blocks of the spec whose files are followed until their stage starts; prepare alone reads those of the corpus."""
FRESH_SECONDS: Final = 1.0
"""How long a fingerprint counts: the run is observed several times a second."""
_DIGITS: Final = 12


class SourceContents:
    """Holds the fingerprints of one resource's sources, and takes them again when they are old."""

    def __init__(self, resource: Manifest) -> None:
        """Find the sources; nothing is read yet."""
        spec = resource.get("spec") or {}
        self._sources = tuple(dict.fromkeys(source for name in BLOCKS for source in _sources(spec.get(name))))
        self._contents: Mapping[str, str] = {}
        self._taken: float | None = None

    def latest(self) -> Mapping[str, str]:
        """Return source -> digest of the names, sizes and modification times of its files, links followed."""
        now = time.monotonic()
        if self._taken is None or now - self._taken >= FRESH_SECONDS:
            self._contents = {source: fingerprint(source) for source in self._sources}
            self._taken = now
        return self._contents


def fingerprint(source: str) -> str:
    """Return the digest of what a `file://` source names at this moment; a file that is missing is part of it."""
    found = local_files(source.removeprefix(FILE_SCHEME))
    # Not the bytes: they may be gigabytes, and this is asked every second.
    files = [[file.path, file.size_bytes, file.modified_ns] for file in found.files]
    digest = digest_of({"files": files, "problems": list(found.problems)})
    return digest.removeprefix("sha256:")[:_DIGITS]


def _sources(value: object) -> Iterator[str]:
    """Yield every local address that stands in a field `source`, at any depth."""
    if isinstance(value, Mapping):
        source = value.get("source")
        if isinstance(source, str) and source.startswith(FILE_SCHEME):
            yield source
        for item in value.values():
            yield from _sources(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _sources(item)
