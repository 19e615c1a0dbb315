"""Writes contract files atomically and reads them with checks. Each has a schema name, a version and a producer.

Reading raises `ContractError` (a `ValueError`) when the file is missing, is not JSON, has another schema or a newer
major version, or does not fit its model. A retry does not help; the message names the file and the reason.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from dapt_contract.base import Contract
from dapt_contract.signature import is_same_text, signature_of
from dapt_contract.untrusted.regular_files import IrregularFileError, read_regular_file
from dapt_contract.version import PRODUCT_VERSION

Body = TypeVar("Body", bound=BaseModel)

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Upper bound of a contract file; a larger one is refused before it is read."""


class ContractError(ValueError):
    """Reports a file or message that breaks the contract. A retry does not help."""


class SignatureError(ContractError):
    """Reports a file that was not signed with the key of this adaptation."""


_SIGNED_FIELDS = {"schema_name", "version", "run_key", "body"}


class Envelope(Contract):
    """Wraps the body of every contract file."""

    schema_name: str
    """For example `dapt.report.prepare`."""
    version: int
    """Major version: raised only when an old reader must not read the file."""
    producer: str
    """Name and version of the program that wrote the file."""
    run_key: str
    """Key of the run that wrote the file; empty where no run did."""
    body: dict[str, object]
    signature: str = ""
    """HMAC-SHA256 over the other fields but the producer, by the key of the adaptation; empty without a key."""

    def signed(self, key: bytes) -> "Envelope":
        """Return a copy with its signature."""
        return self.model_copy(update={"signature": signature_of(self._signed_text(), key)})

    def is_signed_with(self, key: bytes) -> bool:
        """Return whether the signature fits the content and the key."""
        return is_same_text(self.signature, signature_of(self._signed_text(), key))

    def _signed_text(self) -> str:
        # As it is written: a number that is infinite is text there, and is read as text.
        return self.model_dump_json(include=_SIGNED_FIELDS)


def canonical_json(value: object) -> str:
    """Return the JSON of a value that digests are taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest_of(value: BaseModel | Mapping[str, object]) -> str:
    """Return `sha256:` and the hexadecimal SHA-256 of the canonical JSON of a value."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return "sha256:" + hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the new one, even after a power cut.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename across file systems is a copy, which is not atomic.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            # Before the rename: else a power cut can leave the new name on an empty file.
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    # Of any kind: a stop request is raised from a signal handler, wherever the process is.
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    # The rename itself is durable only after this.
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_envelope(
    path: Path, schema_name: str, body: BaseModel, *, run_key: str = "", version: int = 1, key: bytes = b""
) -> None:
    """Write `body` in its envelope, atomically; signed where there is a key.

    Raises:
        OSError: as `write_bytes_atomically`.
    """
    write_bytes_atomically(path, envelope_bytes(schema_name, body, run_key=run_key, version=version, key=key))


def envelope_bytes(
    schema_name: str, body: BaseModel, *, run_key: str = "", version: int = 1, key: bytes = b""
) -> bytes:
    """Return the content of the file that holds `body` in its envelope."""
    envelope = Envelope(
        schema_name=schema_name,
        version=version,
        producer=f"dapt {PRODUCT_VERSION}",
        run_key=run_key,
        body=body.model_dump(mode="json"),
    )
    if key:
        envelope = envelope.signed(key)
    return (envelope.model_dump_json(indent=1) + "\n").encode()


def read_envelope(
    path: Path, schema_name: str, model: type[Body], *, version: int = 1, key: bytes = b""
) -> tuple[Envelope, Body]:
    """Read and check a file that `write_envelope` wrote.

    Args:
        path: of the file.
        schema_name: that it must have.
        model: of its body.
        version: the newest that can be read.
        key: that must have signed it; empty: the signature is not checked.

    Raises:
        SignatureError: it has no signature, or one of another content or key.
        ContractError: see the module's docstring.
    """
    try:
        envelope = Envelope.model_validate_json(read_regular_file(path, MAX_FILE_BYTES))
        # Before the body is read: of a file that anybody may have written nothing else is believed.
        if key and not envelope.is_signed_with(key):
            raise SignatureError(
                f"{path}: its signature does not match this adaptation's key: it was altered, was written by another "
                "adaptation or by a version that did not sign it, or the key was lost and made again since"
            )
        body = model.model_validate(envelope.body)
    except FileNotFoundError as error:
        raise ContractError(f"{path}: no such file; expected a {schema_name} file") from error
    except IrregularFileError as error:
        raise ContractError(f"{path}: {error.strerror}; expected a {schema_name} file") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ContractError(f"{path}: not a valid {schema_name} file: {field}: {first['msg']}") from error
    if envelope.schema_name != schema_name:
        raise ContractError(f"{path}: holds {envelope.schema_name}, expected {schema_name}")
    if envelope.version > version:
        raise ContractError(
            f"{path}: {schema_name} version {envelope.version} is newer than this program reads ({version}); "
            "upgrade dapt"
        )
    return envelope, body
