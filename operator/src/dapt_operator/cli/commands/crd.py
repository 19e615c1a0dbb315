"""`dapt crd`: the CustomResourceDefinitions as files, and whether those in a folder are fresh."""

from __future__ import annotations

from pathlib import Path

from dapt_contract.envelope import write_bytes_atomically
from dapt_operator.api.schema.crd import render
from dapt_operator.cli.errors import UserError


def write(folder: Path) -> list[Path]:
    """Write every definition into `folder`; the paths written.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        for name, text in render().items():
            write_bytes_atomically(folder / name, text.encode())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); give another folder with --out"
        ) from None
    return [folder / name for name in render()]


def stale(folder: Path) -> list[Path]:
    """Definitions in `folder` that are missing or differ from the models."""
    return [
        folder / name
        for name, text in render().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]
