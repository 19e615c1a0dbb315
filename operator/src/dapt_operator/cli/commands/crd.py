"""`dapt crd` writes the CustomResourceDefinitions, or checks that those in a folder match the models."""

from __future__ import annotations

from pathlib import Path

from dapt_contract.envelope import write_bytes_atomically
from dapt_operator.api.schema.crd import render
from dapt_operator.cli.errors import UserError


def write(folder: Path) -> list[Path]:
    """Write every definition into `folder` and return the paths.

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
    """Return the definitions in `folder` that are missing or differ from the models."""
    return [
        folder / name
        for name, text in render().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]
