"""Checks that the files which a stage reads are those that prepare wrote: held-out text, evaluation items and tasks.

`data/manifest.json` lists them with their SHA-256. Shards are listed there too, and compared by `recorded_data`. Tuning
data has its digest in the configuration of its stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from dapt_contract.layout import HARNESS, HELD_OUT, ITEMS, PROBES, TASKS
from dapt_contract.untrusted.folders import paths_below
from dapt_trainer.data.packing.data_manifest import DataManifest, read_manifest
from dapt_trainer.digests import changed_file, sha256_of_file

_FOLDERS = (HELD_OUT, TASKS, PROBES, ITEMS)


def digests_of_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that prepare wrote besides the model, the shards and tuning data.

    Args:
        folder: root of the work volume, or the folder that becomes it.
    """
    paths = [path for name in _FOLDERS for path in paths_below(folder / name) if path.suffix == ".jsonl"]
    # These have the digests of their splits, which are compared when a split is opened (`harness.data`).
    paths += sorted((folder / HARNESS).glob("*/*.json"))
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in paths}


def check_prepared(work: Path, *folders: str, manifest: DataManifest | None = None) -> None:
    """Compare the files below some folders of the work volume with what prepare wrote there.

    Args:
        work: root of the work volume.
        folders: relative to it.
        manifest: that lists the files; None: it is read from the work volume.

    Raises:
        InputError: a file is missing or has other content, or prepare has not finished.
    """
    for path, found, expected in _digests(work, manifest or read_manifest(work), folders):
        if found != expected:
            raise changed_file(path, found, expected)


def is_as_prepared(work: Path, manifest: DataManifest, *folders: str) -> bool:
    """Return whether the files below some folders of the work volume are those of the manifest."""
    return all(found == expected for _, found, expected in _digests(work, manifest, folders))


def _digests(
    work: Path, manifest: DataManifest, folders: Collection[str]
) -> Iterator[tuple[Path, str | None, str]]:
    """Yield (file, its SHA-256 or None where it is missing, SHA-256 by the manifest)."""
    for name, expected in manifest.files:
        if name.split("/")[0] in folders:
            path = work / name
            yield path, sha256_of_file(path) if path.is_file() else None, expected
