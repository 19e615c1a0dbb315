"""Objects as JSON files, one a file, written atomically: what the API server keeps for a cluster.

Values are replaced, never changed in place, so that a reader may keep what it was given.
"""

from __future__ import annotations

import contextlib
import errno
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dapt_contract.envelope import write_bytes_atomically
from dapt_operator.cluster.local.errors import LocalRunError
from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.stage_run import Manifest, plain

_RESERVED_BYTES = 1024 * 1024
"""Put aside, so that a run on a full disk can still be written down."""


class ObjectFiles:
    """All objects of one run folder, in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        """Load the objects of a folder.

        Raises:
            LocalRunError: a file is not an object.
        """
        self._folder = folder
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._reserve = folder / ".reserve"
        if not self._reserve.exists():
            with contextlib.suppress(OSError):
                self._reserve.write_bytes(
                    b"\1" * _RESERVED_BYTES
                )  # not zeros, which some file systems don't store
        for path in sorted(folder.glob("*.json")):
            try:
                found = json.loads(path.read_bytes())
                self._objects[found["kind"], found["metadata"]["name"]] = found
            except (ValueError, KeyError, TypeError) as error:
                raise LocalRunError(
                    f"{path}: not an object that dapt wrote ({error}): remove it, or start afresh with --fresh"
                ) from error

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object; None when it is not there."""
        return self._objects.get((kind, name))

    def all(self, kind: str) -> tuple[dict[str, Any], ...]:
        """All objects of a kind, by name."""
        return tuple(value for key, value in sorted(self._objects.items()) if key[0] == kind)

    def create(self, manifest: Manifest) -> dict[str, Any] | None:
        """Create an object with its uid and time; None when one of this name exists."""
        key = (str(manifest["kind"]), str(manifest["metadata"]["name"]))
        if key in self._objects:
            return None
        created: dict[str, Any] = plain(manifest)
        created["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": micro_time()}
        self.put(created)
        return created

    def put(self, value: Mapping[str, Any]) -> None:
        """Replace an object.

        Raises:
            OSError: the disk is full. The object is replaced in memory all the same, so that this run goes on with
                what is true; the next one takes it for interrupted.
        """
        stored: dict[str, Any] = plain(value)
        kind, name = stored["kind"], stored["metadata"]["name"]
        self._objects[kind, name] = stored
        self.write_file(self._path(kind, name), (json.dumps(stored, indent=1) + "\n").encode())

    def write_file(self, path: Path, content: bytes) -> None:
        """Write a file of the run folder atomically; on a full disk, in the space put aside for it.

        Raises:
            OSError: the disk is full and the reserve is spent.
        """
        try:
            write_bytes_atomically(path, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._reserve.unlink(missing_ok=True)
            write_bytes_atomically(path, content)

    def remove(self, kind: str, name: str) -> None:
        """Remove an object; absent: no effect."""
        if self._objects.pop((kind, name), None) is not None:
            self._path(kind, name).unlink(missing_ok=True)

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind.lower()}-{name}.json"
