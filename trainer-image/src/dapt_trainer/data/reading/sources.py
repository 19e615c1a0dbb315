"""Finds the files behind the URI of a source.

    file://PATH                          this machine (local runs)
    pvc://CLAIM/PATH                     a claim that the pod mounts at /mnt/claims/CLAIM (see CLAIMS_FOLDER)
    hf://datasets/ORG/NAME@REVISION/PATH files of a data set; a moving revision is resolved and recorded
    s3://BUCKET/PATH, gs://BUCKET/PATH   object stores; credentials and AWS_ENDPOINT_URL from the environment

PATH may hold wildcards (`*`, `**`, `?`, `[a-z]`); a folder stands for all files of a known type below it. Files are
read in the order of their names.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dapt_contract.pod import CLAIMS_MOUNT
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.errors import InputError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CLAIMS_FOLDER = "DAPT_CLAIMS"
"""Environment variable: folder below which the claims of pvc:// are mounted; default /mnt/claims."""

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
COMPRESSIONS = (".gz", ".zst")
ACCEPTED = (
    ".jsonl, .ndjson or .json (one record a line), .parquet, .txt, .md, each but .parquet also .gz or .zst"
)
_WILDCARDS = "*?["


@dataclass(frozen=True)
class SourceFile:
    """Describes one file of a source."""

    path: str
    """Path in the source's file system."""
    label: str
    """Name of the file in messages."""
    format: str
    """jsonl, parquet or text."""
    compression: str
    """.gz, .zst or empty."""
    size_bytes: int


@dataclass(frozen=True)
class ResolvedSource:
    """Lists the files of a source and the file system that they lie in."""

    uri: str
    filesystem: AbstractFileSystem
    files: tuple[SourceFile, ...]
    resolved: str
    """URI with an immutable revision and the number and size of its files, for the report."""


def file_format(path: str) -> tuple[str, str] | None:
    """Return (format, compression) by the file's name; None when its type is not known."""
    name = path.rsplit("/", 1)[-1].lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    name = name[: len(name) - len(compression)]
    format_name = next((format_ for ending, format_ in FORMATS.items() if name.endswith(ending)), None)
    if format_name is None or (format_name == "parquet" and compression):
        return None
    return format_name, compression


def resolve(uri: str, field: str) -> ResolvedSource:
    """Find the files of a source.

    Args:
        uri: as the user wrote it.
        field: the manifest's field, for messages.

    Raises:
        InputError: the source cannot be reached or has no file of a known type that is not empty.
    """
    filesystem, path, resolved = filesystem_of(uri, field)
    try:
        paths = _list_files(filesystem, path)
    except FileNotFoundError:
        paths = []
    except Exception as error:  # every object store raises exceptions of its own
        raise InputError(unreachable(uri, field, error)) from error
    if not paths:
        raise InputError(f"{field}: no file matches {uri}; check the path and its wildcards")
    files = tuple(
        SourceFile(name, _label(uri, name), *file_type, size)
        for name, size in paths
        if (file_type := file_format(name)) is not None
    )
    if uri.startswith("hf://"):
        # A repository's README and descriptions lie in the same folder as its data, and they are no training text.
        formats = {file.format for file in files}
        data_format = next((format_ for format_ in ("parquet", "jsonl", "text") if format_ in formats), "")
        files = tuple(file for file in files if file.format == data_format)
    if not files:
        raise InputError(
            f"{field}: {uri} has no file of a known type (the first is {paths[0][0]}); accepted are {ACCEPTED}"
        )
    total_bytes = sum(file.size_bytes for file in files)
    if not total_bytes:
        raise InputError(
            f"{field}: {uri} is empty: {len(files)} file(s) of 0 bytes; fill it or remove the source"
        )
    return ResolvedSource(uri, filesystem, files, f"{resolved} ({len(files)} files, {total_bytes} bytes)")


def filesystem_of(uri: str, field: str) -> tuple[AbstractFileSystem, str, str]:
    """Return (file system, path in it, URI with an immutable revision).

    Raises:
        InputError: the scheme is unknown, its package is missing, or the hub does not know the revision.
    """
    import fsspec

    scheme, _, path = uri.partition("://")
    if scheme == "file":
        return fsspec.filesystem("file"), os.path.abspath(path), uri
    if scheme == "pvc":
        return fsspec.filesystem("file"), _claim_path(uri, path, field), uri
    if scheme not in ("hf", "s3", "gs"):
        raise InputError(
            f"{field}: {uri}: scheme not known; accepted are hf://, s3://, gs://, pvc:// and file://"
        )
    try:
        if scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL")
            options = {"client_kwargs": {"endpoint_url": endpoint}} if endpoint else {}
            return fsspec.filesystem("s3", **options), path, uri
        if scheme == "gs":
            return fsspec.filesystem("gs"), path, uri
        return fsspec.filesystem("hf"), *_hub_path(uri, path, field)
    except ImportError as error:
        raise InputError(
            f"{field}: {uri}: this image cannot read {scheme}:// ({first_line(error)}); copy the files to s3:// or hf://"
        ) from error


def unreachable(uri: str, field: str, error: BaseException) -> str:
    """Return the message for a source that cannot be read."""
    return (
        f"{field}: {uri} cannot be reached ({type(error).__name__}: {first_line(error)}); "
        "check the address, the credentials and the network"
    )


def _claim_path(uri: str, path: str, field: str) -> str:
    root = os.environ.get(CLAIMS_FOLDER, CLAIMS_MOUNT)
    claim = path.split("/", 1)[0]
    # The path must stay inside the claim: the pod has other volumes too.
    if ".." in path.split("/") or not claim:
        raise InputError(f"{field}: {uri}: a claim's path is pvc://CLAIM/PATH without '..'")
    if not os.path.isdir(os.path.join(root, claim)):
        raise InputError(
            f"{field}: {uri}: claim {claim!r} is not mounted at {root}/{claim}; "
            "check that the claim exists in the namespace"
        )
    return os.path.join(root, path)


def _hub_path(uri: str, path: str, field: str) -> tuple[str, str]:
    parts = path.split("/")
    if parts[0] != "datasets" or len(parts) < 3:
        raise InputError(f"{field}: {uri}: text on the hub is hf://datasets/ORG/NAME@REVISION/FILES")
    name, _, revision = parts[2].partition("@")
    repository = f"{parts[1]}/{name}"
    try:
        from huggingface_hub import HfApi

        # A branch may move while files are read: all are read at one commit, which the report names.
        commit = HfApi().dataset_info(repository, revision=revision or None).sha
    except Exception as error:
        raise InputError(unreachable(uri, field, error)) from error
    rest = "/".join(parts[3:])
    pinned = f"datasets/{repository}@{commit}" + (f"/{rest}" if rest else "")
    return pinned, f"hf://{pinned}"


def _list_files(filesystem: AbstractFileSystem, path: str) -> list[tuple[str, int]]:
    """Return (path, bytes) of the files that a path or pattern names, sorted by path."""
    if any(character in path for character in _WILDCARDS):
        details = filesystem.glob(path, detail=True)
    else:
        info = filesystem.info(path)
        if info["type"] == "file":
            return [(info["name"], int(info["size"] or 0))]
        # A local folder may have wildcards in its own name; object stores would look for the escaped name.
        folder = glob.escape(path) if "file" in _protocols(filesystem) else path
        details = filesystem.glob(f"{folder.rstrip('/')}/**", detail=True)
        details = {
            name: info
            for name, info in details.items()
            if file_format(name) and "/." not in name[len(path) :]
        }
    return sorted((name, int(info["size"] or 0)) for name, info in details.items() if info["type"] == "file")


def _protocols(filesystem: AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _label(uri: str, path: str) -> str:
    scheme = uri.partition("://")[0]
    return path if scheme in ("file", "pvc") else f"{scheme}://{path}"
