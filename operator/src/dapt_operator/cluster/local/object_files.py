"""Stores objects as JSON files, one for each object, written atomically: the API server of a local run.

Objects are replaced, never changed in place, so that a reader may keep what it got.
"""

from __future__ import annotations

import contextlib
import errno
import json
import uuid
from pathlib import Path
from typing import Final

from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.untrusted.regular_files import IrregularFileError, read_regular_file
from dapt_operator.cluster.local.errors import LocalRunError
from dapt_operator.cluster.local.object_shapes import shape_problem
from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.stage_run import JsonObject, Manifest, plain

MAX_OBJECT_BYTES: Final = 16 * 2**20
"""A larger file is none of dapt's: the API server's own bound for an object is a tenth."""
_RESERVED_BYTES: Final = 1024 * 1024
"""Disk space that is reserved, so that the end of a run can still be written on a full disk."""


class ObjectFiles:
    """Holds all objects of one run folder, in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        """Load the objects of a folder.

        Raises:
            LocalRunError: a file is not an object.
        """
        self._folder = folder
        self._objects: dict[tuple[str, str], JsonObject] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._reserve = folder / ".reserve"
        if not self._reserve.exists():
            with contextlib.suppress(OSError):
                # Not zeros: some file systems store none, and the file would reserve nothing.
                self._reserve.write_bytes(b"\1" * _RESERVED_BYTES)
        for path in sorted(folder.glob("*.json")):
            try:
                stored = json.loads(read_regular_file(path, MAX_OBJECT_BYTES))
                kind, name = stored["kind"], stored["metadata"]["name"]
                # It is written, and removed, by these two: in a folder from elsewhere they may lead to another place.
                if not isinstance(name, str) or path != self._path(kind, name):
                    raise ValueError(f"it holds {str(kind)[:40]!r} {str(name)[:80]!r}")
                if field := shape_problem(stored):
                    raise ValueError(f"{field} is not of its type")
                self._objects[kind, name] = stored
            except IrregularFileError as error:
                raise LocalRunError(
                    f"{path}: {error.strerror}: remove it, or start over with --fresh"
                ) from error
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise LocalRunError(
                    f"{path}: not an object that dapt wrote ({error}): remove it, or start over with --fresh"
                ) from error

    def get(self, kind: str, name: str) -> JsonObject | None:
        """Return an object; None when it does not exist."""
        return self._objects.get((kind, name))

    def all(self, kind: str) -> tuple[JsonObject, ...]:
        """Return all objects of a kind, sorted by name."""
        return tuple(value for key, value in sorted(self._objects.items()) if key[0] == kind)

    def create(self, manifest: Manifest) -> JsonObject | None:
        """Create an object with a uid and a time and return it; None when one of this name exists."""
        key = (str(manifest["kind"]), str(manifest["metadata"]["name"]))
        if key in self._objects:
            return None
        created: JsonObject = plain(manifest)
        created["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": micro_time()}
        self.put(created)
        return created

    def put(self, value: Manifest) -> None:
        """Replace an object.

        Raises:
            OSError: the disk is full. The object is replaced in memory all the same, so that this local run continues
                with what is true; the next one treats the stage as interrupted.
        """
        # A copy without tuples and models: what a reader gets now is what a restart would load.
        stored: JsonObject = plain(value)
        kind, name = stored["kind"], stored["metadata"]["name"]
        self._objects[kind, name] = stored
        self.write_file(self._path(kind, name), (json.dumps(stored, indent=1) + "\n").encode())

    def write_file(self, path: Path, content: bytes) -> None:
        """Write a file of the run folder atomically; on a full disk, use the reserved space.

        Raises:
            OSError: the disk is full and the reserved space is used up.
        """
        try:
            write_bytes_atomically(path, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # The end of this run is what it was kept for; the next one reserves it again.
            self._reserve.unlink(missing_ok=True)
            write_bytes_atomically(path, content)

    def remove(self, kind: str, name: str) -> None:
        """Remove an object; no effect if it is absent."""
        if self._objects.pop((kind, name), None) is not None:
            self._path(kind, name).unlink(missing_ok=True)

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind.lower()}-{name}.json"
