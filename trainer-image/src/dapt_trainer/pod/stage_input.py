"""Reads stage.json and refuses it unless its bytes are those that the operator computed the digest of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from dapt_contract.pod.failure import ALTERED_STAGE_FILE
from dapt_contract.stage_file import StageFile
from dapt_trainer.errors import InputError


def read_stage(config: Path, sha256: str | None, kind: str | None = None) -> StageFile:
    """Return the checked content of stage.json.

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
    actual = hashlib.sha256(content).hexdigest()
    if sha256 is not None and actual != sha256.removeprefix("sha256:"):
        raise InputError(
            f"{config}: {ALTERED_STAGE_FILE}: SHA-256 {actual[:12]}..., expected {sha256[:12]}...; "
            "delete the ConfigMap and the Job; the operator creates them again"
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
        raise InputError(f"{config}: holds a stage of kind {stage.kind!r}, but {kind!r} was requested")
    return stage
