"""Reading stage.json: the very bytes that the operator digested, or nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from dapt_contract.failure import ALTERED_STAGE_FILE
from dapt_contract.stage_file import StageFile
from dapt_trainer.errors import InputError


def read_stage(config: Path, sha256: str | None, kind: str | None = None) -> StageFile:
    """Read and check stage.json.

    Args:
        config: the file.
        sha256: hexadecimal SHA-256 that its bytes must have; None: unchecked.
        kind: kind of stage that it must hold; None: any.

    Raises:
        InputError: missing, altered, invalid, or of another kind.
    """
    try:
        content = config.read_bytes()
    except OSError as error:
        raise InputError(
            f"{config}: cannot be read ({error.strerror}); it holds the stage's configuration"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.removeprefix("sha256:"):
        raise InputError(
            f"{config}: {ALTERED_STAGE_FILE}: SHA-256 {found[:12]}..., expected {sha256[:12]}...; "
            "delete the ConfigMap and the Job, so that they are created anew"
        )
    try:
        stage = StageFile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{config}: not a stage that this image can run: {where}: {first['msg']}; "
            "operator and trainer image must be of the same release"
        ) from error
    if kind is not None and stage.kind != kind:
        raise InputError(f"{config}: holds a stage of kind {stage.kind!r}, but {kind!r} was asked for")
    return stage
