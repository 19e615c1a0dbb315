"""Says what may have been meant by a path of this machine at which there is nothing."""

from __future__ import annotations

import os
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Final

from dapt_client.documents import FILE_SCHEME
from dapt_contract.inputs.source_files import has_wildcards
from dapt_operator.api.validation.hints.value_hints import windows_address
from dapt_operator.cli.inputs.source_sizes import local_files

_MAX_NAMES: Final = 10_000
"""Names of a folder that are compared: one with a million files is no place for a guess."""


def path_advice(address: str, written: object, folder: Path) -> str:
    """Return what may have been meant; empty where there is something at the path, or nothing like it.

    Args:
        address: absolute `file://` address, of a file or folder, or with wildcards.
        written: as the manifest has it.
        folder: of the manifest.
    """
    path = Path(address.removeprefix(FILE_SCHEME))
    # What is there and cannot be read, such as a dead link, has no nearer name than its own.
    if os.path.lexists(path) or (has_wildcards(str(path)) and local_files(address).files):
        return ""
    from_root = str(written).removeprefix(FILE_SCHEME)
    if address_of_drive := windows_address(from_root):
        return f"a path of Windows: under WSL write {address_of_drive}"
    relative = from_root.lstrip("/")
    if from_root.startswith("/") and local_files(f"{FILE_SCHEME}{folder / relative}").files:
        return f"a path from the manifest's folder has two slashes: write {FILE_SCHEME}{relative}"
    # A wildcard in the first name would find whatever lies in the root folder.
    if has_wildcards(relative.partition("/")[0]):
        from_root = ""
    if from_root and not from_root.startswith(("/", "~")) and local_files(f"{FILE_SCHEME}/{from_root}").files:
        return f"an absolute path has three slashes: write {FILE_SCHEME}/{from_root}"
    parent, missing = _first_missing(path)
    try:
        names = [entry.name for entry in islice(parent.iterdir(), _MAX_NAMES)]
    except OSError:
        return ""
    shown = sorted(name for name in names if not name.startswith("."))
    if has_wildcards(missing):
        return f"{parent} has {_first_of(shown)}" if shown else f"{parent} is empty"
    # Without their endings, which most files of a folder share.
    stems = {Path(name).stem: name for name in reversed(shown)}
    nearest = get_close_matches(Path(missing).stem, stems, n=1)
    if nearest:
        return f"the nearest name in {parent} is {stems[nearest[0]]}"
    return "" if parent / missing == path else f"{parent} has no {missing!r}"


def _first_missing(path: Path) -> tuple[Path, str]:
    """Return the deepest folder of a path that exists, and the name after it."""
    for folder in path.parents:
        if folder.is_dir():
            return folder, path.relative_to(folder).parts[0]
    return path, ""


def _first_of(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
