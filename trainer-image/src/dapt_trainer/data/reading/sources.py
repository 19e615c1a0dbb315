"""Finds the files behind the URI of a source.

    file://PATH                          this machine (local runs)
    pvc://CLAIM/PATH                     a claim that the pod mounts at /mnt/claims/CLAIM (see CLAIMS_FOLDER)
    hf://datasets/ORG/NAME@REVISION/PATH files of a data set; a moving revision is resolved and recorded
    s3://BUCKET/PATH, gs://BUCKET/PATH   object stores; credentials and AWS_ENDPOINT_URL from the environment

What a path names, with its wildcards and links, is defined in `dapt_contract.inputs.source_files`. Nothing in an
address is decoded but `%2F` in a revision, where a `/` may also stand as it is. Files are read in the order of their
names.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dapt_contract.inputs.source_files import (
    ACCEPTED,
    always_has_wildcards,
    escaped,
    file_format,
    has_wildcards,
    local_files,
    may_hold_text,
    names_match,
    without_descriptions,
)
from dapt_contract.pod.environment import CLAIMS_MOUNT
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.reading.hub_revision import look_up
from dapt_trainer.errors import InputError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    Opened = tuple[AbstractFileSystem, str, str]
    """File system, path in it, URI with an immutable revision."""

CLAIMS_FOLDER = "DAPT_CLAIMS"
"""Environment variable: folder below which the claims of pvc:// are mounted; default /mnt/claims."""
_CONTENT_FIELDS = (
    *("size", "mtime", "ino"),  # of this machine
    *("ETag", "LastModified", "VersionId"),  # of S3
    *("etag", "updated", "generation", "md5Hash"),  # of Google's store
    *("blob_id", "xet_hash"),  # of the hub
)
"""Fields by which file systems tell one content of a file from another."""
_LOCAL_SCHEMES = ("file://", "pvc://")


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
    notes: tuple[str, ...] = ()
    """What was left out although the source names it: files with two names, and those of types that are not read."""


def resolve(uri: str, field: str) -> ResolvedSource:
    """Find the files of a source.

    Args:
        uri: as the user wrote it.
        field: the manifest's field, for messages.

    Raises:
        InputError: the source cannot be reached or has no file of a known type that is not empty.
    """
    # 1. Everything that the address names.
    filesystem, path, resolved = filesystem_of(uri, field)
    if uri.startswith(_LOCAL_SCHEMES):
        found = _found_here(path, uri, field)
    else:
        found = _found_in_store(filesystem, path, uri, field)
    # 2. Of that the files of known types, without those that only describe a data set.
    names = [name for name in found.sizes if file_format(name) is not None]
    notes = found.notes
    if names != [path]:
        data, descriptions = without_descriptions(names)
        if data or found.others:
            names = data
            notes += _left_out(descriptions, "describing the data")
    notes += _left_out([name for name in found.others if may_hold_text(name)], "of types that are not read")
    files = tuple(
        SourceFile(name, _label(uri, name), *format_, found.sizes[name])
        for name in names
        if (format_ := file_format(name)) is not None
    )
    if uri.startswith("hf://"):
        # Repositories hold their data in several formats, and texts about it.
        formats = {file.format for file in files}
        data_format = next((format_ for format_ in ("parquet", "jsonl", "text") if format_ in formats), "")
        others = [file.path for file in files if file.format != data_format]
        notes += _left_out(others, f"of other types than {data_format}")
        files = tuple(file for file in files if file.format == data_format)
    # 3. A source without any text is a mistake.
    if not files and not found.others:
        raise InputError(f"{field}: no file matches {uri}; check the path and its wildcards")
    if not files:
        first = _printable(found.others[0])
        raise InputError(
            f"{field}: {uri} has no file of a known type (the first is {first}); {_advice(found.others)}"
        )
    total_bytes = sum(file.size_bytes for file in files)
    if not total_bytes:
        raise InputError(
            f"{field}: {uri} is empty: {len(files)} file(s) of 0 bytes; fill it or remove the source"
        )
    counted = "; ".join([f"{len(files)} files, {total_bytes} bytes", *notes])
    return ResolvedSource(uri, filesystem, files, f"{resolved} ({counted})", tuple(notes))


@dataclass(frozen=True)
class _Found:
    """Holds what an address names."""

    sizes: dict[str, int]
    """Bytes of the files, by path."""
    others: list[str]
    """Files of other types than are read."""
    notes: list[str]


def _found_here(path: str, uri: str, field: str) -> _Found:
    local = local_files(path, root=claim_root(uri))
    if local.problems:
        raise InputError(*(f"{field}: {_printable(problem)}" for problem in local.problems))
    sizes = {file.path: file.size_bytes for file in local.files}
    others = [name for name in (*sizes, *local.others) if file_format(name) is None]
    return _Found(sizes, others, [_printable(note) for note in local.notes])


def _found_in_store(filesystem: AbstractFileSystem, path: str, uri: str, field: str) -> _Found:
    try:
        sizes = dict(_stored_files(filesystem, path))
    except FileNotFoundError:
        sizes = {}
    except Exception as error:  # every object store raises exceptions of its own
        raise InputError(unreachable(uri, field, error)) from error
    return _Found(sizes, [name for name in sizes if file_format(name) is None], [])


def _left_out(names: Sequence[str], reason: str) -> list[str]:
    """Return the note about files that are not read."""
    if not names:
        return []
    counted = "1 file" if len(names) == 1 else f"{len(names):,} files"
    return [f"{counted} {reason} {'is' if len(names) == 1 else 'are'} left out ({_printable(names[0])})"]


def _advice(others: Sequence[str]) -> str:
    """Return what to do about files of other types."""
    if any(name.endswith(".arrow") for name in others):
        return (
            "write a data set that `save_to_disk` wrote as Parquet: load_from_disk(FOLDER).to_parquet(FILE)"
        )
    return f"accepted are {ACCEPTED}"


def filesystem_of(uri: str, field: str) -> Opened:
    """Open what a URI names.

    Raises:
        InputError: the scheme is unknown, its package is missing, or the hub does not know the revision.
    """
    scheme, _, path = uri.partition("://")
    if scheme not in OPENERS:
        *others, last = (f"{name}://" for name in OPENERS)
        raise InputError(f"{field}: {uri}: scheme not known; accepted are {', '.join(others)} and {last}")
    try:
        return OPENERS[scheme](uri, path, field)
    except ImportError as error:
        raise InputError(
            f"{field}: {uri}: this image cannot read {scheme}:// ({first_line(error)}); copy the files to s3:// or hf://"
        ) from error


def _open_hub(uri: str, path: str, field: str) -> Opened:
    import fsspec

    return fsspec.filesystem("hf"), *_hub_path(uri, path, field)


def _open_s3(uri: str, path: str, field: str) -> Opened:  # noqa: ARG001
    import fsspec

    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    options = {"client_kwargs": {"endpoint_url": endpoint}} if endpoint else {}
    return fsspec.filesystem("s3", **options), path, uri


def _open_gs(uri: str, path: str, field: str) -> Opened:  # noqa: ARG001
    import fsspec

    return fsspec.filesystem("gs"), path, uri


def _open_claim(uri: str, path: str, field: str) -> Opened:
    import fsspec

    return fsspec.filesystem("file"), _claim_path(uri, path, field), uri


def _open_folder(uri: str, path: str, field: str) -> Opened:  # noqa: ARG001
    import fsspec

    return fsspec.filesystem("file"), os.path.abspath(path), uri


OPENERS: dict[str, Callable[[str, str, str], Opened]] = {
    "hf": _open_hub,
    "s3": _open_s3,
    "gs": _open_gs,
    "pvc": _open_claim,
    "file": _open_folder,
}
"""By scheme: opens a URI, given the path in it and the field for messages. Raises InputError and ImportError."""


def content_key(filesystem: AbstractFileSystem, path: str) -> str:
    """Return what a file system says of a file's content and changes with it; where it says nothing, a random text."""
    try:
        info = filesystem.info(path)
    except Exception:  # every object store raises exceptions of its own; the reading says what is wrong
        info = {}
    known = sorted((name, str(info[name])) for name in _CONTENT_FIELDS if info.get(name))
    return repr(known) if len(known) > 1 else secrets.token_hex(8)


def unreachable(uri: str, field: str, error: BaseException) -> str:
    """Return the message for a source that cannot be read."""
    return (
        f"{field}: {uri} cannot be reached ({type(error).__name__}: {first_line(error)}); "
        "check the address, the credentials and the network"
    )


def _claim_path(uri: str, path: str, field: str) -> str:
    root, claim = _claims_folder(), path.split("/", 1)[0]
    # The path must stay inside the claim: the pod has other volumes too.
    if ".." in path.split("/") or not claim:
        raise InputError(f"{field}: {uri}: a claim's path is pvc://CLAIM/PATH without '..'")
    if not os.path.isdir(os.path.join(root, claim)):
        raise InputError(
            f"{field}: {uri}: claim {claim!r} is not mounted at {root}/{claim}; "
            "check that the claim exists in the namespace"
        )
    return os.path.join(root, path)


def check_files(paths: Iterable[str], uri: str, field: str) -> None:
    """Refuse files on this machine that are named one by one, where any is no file or lies outside its claim.

    Args:
        paths: of the files.
        uri: of the source that they belong to.
        field: the manifest's field, for messages.

    Raises:
        InputError: with a sentence for each of them; none was opened.
    """
    root = claim_root(uri)
    found = [local_files(escaped(path), root=root) for path in paths]
    problems = [problem for files in found for problem in files.problems]
    if problems:
        raise InputError(*(f"{field}: {_printable(problem)}" for problem in problems))


def claim_root(uri: str) -> str | None:
    """Return the folder that no link of a `pvc://` address may leave; None for other addresses."""
    if not uri.startswith("pvc://"):
        return None
    return os.path.join(_claims_folder(), uri.removeprefix("pvc://").split("/", 1)[0])


def _claims_folder() -> str:
    return os.environ.get(CLAIMS_FOLDER, CLAIMS_MOUNT)


def _hub_path(uri: str, path: str, field: str) -> tuple[str, str]:
    parts = path.split("/")
    if parts[0] != "datasets" or len(parts) < 3:
        raise InputError(f"{field}: {uri}: text on the hub is hf://datasets/ORG/NAME@REVISION/FILES")
    name, _, revision = parts[2].partition("@")
    repository = f"{parts[1]}/{name}"
    try:
        from huggingface_hub import HfApi

        # A branch may move while files are read: all are read at one commit, which the report names.
        info, rest = look_up(
            revision, parts[3:], lambda revision: HfApi().dataset_info(repository, revision=revision)
        )
    except Exception as error:
        raise InputError(unreachable(uri, field, error)) from error
    pinned = "/".join([f"datasets/{repository}@{info.sha}", *rest])
    return pinned, f"hf://{pinned}"


def _stored_files(filesystem: AbstractFileSystem, path: str) -> list[tuple[str, int]]:
    """Return (path, bytes) of the files of an object store or hub that a path names, sorted by path."""
    names = path.split("/")
    num_literal = 0
    # A name with brackets may be the name of a key: it is asked for before it is taken for a wildcard.
    while num_literal < len(names) and (
        not has_wildcards(names[num_literal])
        or (
            not always_has_wildcards(names[num_literal])
            and filesystem.exists("/".join(names[: num_literal + 1]))
        )
    ):
        num_literal += 1
    base, patterns = "/".join(names[:num_literal]).rstrip("/"), names[num_literal:]
    if not patterns:
        info = filesystem.info(base)
        if info["type"] == "file":
            return [(info["name"], int(info["size"] or 0))]
        return _files_below(filesystem, base)
    max_depth = None if "**" in patterns else len(patterns)
    found = filesystem.find(base, maxdepth=max_depth, withdirs=True, detail=True)
    files: dict[str, int] = {}
    for name, info in found.items():
        if not names_match(name.removeprefix(base).strip("/").split("/"), patterns):
            continue
        if info["type"] == "file":
            files[name] = int(info["size"] or 0)
        elif file_format(name) is not None:
            # A folder of a known type's name is how Spark writes one table.
            files |= dict(_files_below(filesystem, name))
    return sorted(files.items())


def _files_below(filesystem: AbstractFileSystem, folder: str) -> list[tuple[str, int]]:
    """Return (path, bytes) of all files below a folder, hidden ones left out, sorted by path."""
    found = filesystem.find(folder, detail=True)
    return sorted(
        (name, int(info["size"] or 0))
        for name, info in found.items()
        if info["type"] == "file" and "/." not in name.removeprefix(folder)
    )


def _label(uri: str, path: str) -> str:
    scheme = uri.partition("://")[0]
    return _printable(path) if uri.startswith(_LOCAL_SCHEMES) else f"{scheme}://{path}"


def _printable(text: str) -> str:
    """Return a text that can be written as UTF-8: a file's name on this machine may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
