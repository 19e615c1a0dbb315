"""Files with a name, a version and a producer; written atomically, read with a check.

Exceptions: `ContractError` (a `ValueError`): the file is missing, not JSON, of another schema or a newer major
version, or does not fit its model. A retry does not help; the message names the file and the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dapt_contract.base import Contract
from dapt_contract.version import PRODUCT_VERSION

Body = TypeVar("Body", bound=BaseModel)

MAX_FILE_BYTES = 64 * 1024 * 1024
"""No contract file is larger; a larger one is refused unread."""


class ContractError(ValueError):
    """A file or message that does not keep the contract. Trying again does not help."""


class Envelope(Contract):
    """What stands around the body of every contract file."""

    schema_name: str
    """For example `dapt.report.prepare`."""
    version: int
    """Major version: raised only when an old reader must not read on."""
    producer: str
    """Name and version of the program that wrote the file."""
    run_key: str
    """The run that wrote it; empty where no run did."""
    body: dict[str, Any]


def canonical_json(value: object) -> str:
    """The one spelling of a value: sorted keys, no spaces. Digests are taken of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest_of(value: BaseModel | dict[str, Any]) -> str:
    """`sha256:` and the hexadecimal SHA-256 of the canonical JSON of a value."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return "sha256:" + hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the new one, also after a power cut.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_envelope(
    path: Path, schema_name: str, body: BaseModel, *, run_key: str = "", version: int = 1
) -> None:
    """Write `body` in its envelope, atomically.

    Raises:
        OSError: as `write_bytes_atomically`.
    """
    envelope = Envelope(
        schema_name=schema_name,
        version=version,
        producer=f"dapt {PRODUCT_VERSION}",
        run_key=run_key,
        body=body.model_dump(mode="json"),
    )
    write_bytes_atomically(path, (envelope.model_dump_json(indent=1) + "\n").encode())


def read_envelope(
    path: Path, schema_name: str, model: type[Body], *, version: int = 1
) -> tuple[Envelope, Body]:
    """Read a file that `write_envelope` wrote.

    Raises:
        ContractError: see the module's docstring.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ContractError(f"{path}: larger than {MAX_FILE_BYTES} bytes; not a file that dapt wrote")
        envelope = Envelope.model_validate_json(path.read_bytes())
        body = model.model_validate(envelope.body)
    except FileNotFoundError as error:
        raise ContractError(f"{path}: no such file; expected a {schema_name} file") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ContractError(f"{path}: not a valid {schema_name} file: {where}: {first['msg']}") from error
    if envelope.schema_name != schema_name:
        raise ContractError(f"{path}: holds {envelope.schema_name}, expected {schema_name}")
    if envelope.version > version:
        raise ContractError(
            f"{path}: {schema_name} version {envelope.version} is newer than this program reads ({version}); "
            "upgrade dapt"
        )
    return envelope, body
