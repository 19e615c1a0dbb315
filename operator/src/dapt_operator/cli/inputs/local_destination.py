"""Looks whether a destination on this machine could take the model, by the rules by which the model is published."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dapt_client.documents import FILE_SCHEME
from dapt_contract.inputs.json_files import read_json_object
from dapt_operator.api.v1alpha1.spec import DomainAdaptation

_MANIFEST = "dapt.json"
"""File that publish writes last; its run digest says whose model a folder holds."""


def destination_problem(address: str, adaptation: DomainAdaptation | None) -> Iterator[str]:
    """Yield what keeps a `file://` destination from being written; at most one sentence.

    adaptation: whose own earlier result may be replaced; None: any result of dapt's may be its own.
    """
    folder = Path(address.removeprefix(FILE_SCHEME))
    try:
        if folder.is_symlink() and not folder.exists():
            yield f"{folder}: a link to {os.readlink(folder)}, which is not there; restore or remove it"
        elif folder.exists() and not folder.is_dir():
            yield f"{folder}: a file; give a folder, which need not exist"
        elif folder.is_dir() and any(folder.iterdir()):
            yield from _occupied(folder, adaptation)
        else:
            yield from _not_writable(folder)
    except OSError as error:
        yield f"{folder}: cannot be looked at ({error.strerror}); check its permissions"


def _occupied(folder: Path, adaptation: DomainAdaptation | None) -> Iterator[str]:
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        yield (
            f"{folder}: not empty, and no {_MANIFEST} says that this run wrote it; choose another folder, or empty"
            " this one"
        )
        return
    try:
        digest = read_json_object(manifest)["body"]["run_digest"]  # type: ignore[index,call-overload] # is caught
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{folder}: its {_MANIFEST} cannot be read; choose another folder, or empty this one"
        return
    # The planner's modules take a while to load, and few manifests name a place that is taken.
    from dapt_operator.plan.stages.publish import run_digest

    if adaptation is not None and digest != run_digest(adaptation.spec):
        yield f"{folder}: holds the model of another run; choose another folder, or remove that model"
    else:
        yield from _not_writable(folder)


def _not_writable(folder: Path) -> Iterator[str]:
    """Yield a sentence where the folder cannot be made: the model is written next to it first, then renamed."""
    nearest = next(parent for parent in folder.parents if parent.exists())
    if not nearest.is_dir():
        yield f"{folder}: {nearest} is a file, so no folder can be made in it; choose another place"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield f"{folder}: {nearest} cannot be written; change its permissions, or choose another place"
