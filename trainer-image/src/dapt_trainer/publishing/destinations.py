"""Writes a model to a folder (file://, pvc://), an object store (s3://, gs://), or a repository of the hub (hf://).

All three follow the same rule (`require_writable`): a destination that is not empty is written only when its
`dapt.json` has the same run digest. In all three the manifest appears last: in an object store it is written last, a
folder appears as a whole, and a commit is atomic.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dapt_contract.layout import HUB_CACHE, PREPARED, STAGES
from dapt_trainer.data.reading.sources import filesystem_of
from dapt_trainer.errors import InputError
from dapt_trainer.publishing.published_files import MANIFEST, run_digest_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Heartbeat = Callable[[], None]
SCHEMES = ("file", "pvc", "s3", "gs", "hf")
FIELD = "output.destination"
_RESERVED_FOLDERS = frozenset((*PREPARED, HUB_CACHE, STAGES))
"""Folders of the work volume that no model may be published into."""
_SHOWN_DIGEST_CHARACTERS = 19


class Destination(Protocol):
    """Describes a place that a model can be written to."""

    def require_writable(self, run_digest: str) -> None:
        """Refuse a destination that is not empty and was not written by the same run.

        Raises:
            InputError: it holds another run's model, or files of unknown origin.
        """
        ...

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Write a folder's files, the manifest last.

        Raises:
            OSError: disk or network failed.
        """
        ...


def open_destination(uri: str, *, work: Path) -> Destination:
    """Return the destination that a URI names.

    Args:
        uri: file:///PATH, pvc://CLAIM/FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or hf://ORG/NAME.
        work: root of the work volume, whose own folders are no destinations.

    Raises:
        InputError: the scheme is unknown, or the place is inside the work volume's own folders.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in SCHEMES or not rest.strip("/"):
        accepted = ", ".join(f"{name}://" for name in SCHEMES)
        raise InputError(f"output.destination {uri!r}: accepted is one of {accepted} with a path after it")
    if scheme == "hf":
        return Hub(uri, rest.strip("/"))
    if scheme == "pvc" and "/" not in rest.strip("/"):
        raise InputError(
            f"output.destination {uri!r}: the claim itself cannot be replaced as a whole; write pvc://CLAIM/FOLDER"
        )
    files, path, _ = filesystem_of(uri, FIELD)
    if scheme in ("s3", "gs"):
        return ObjectStore(uri, files, path)
    folder = Path(path)
    if folder.resolve() == work.resolve() or work.resolve() in folder.resolve().parents:
        inside = folder.resolve().relative_to(work.resolve()).parts
        if not inside or inside[0] in _RESERVED_FOLDERS:
            raise InputError(
                f"output.destination {uri!r}: lies inside the run's own work folder; choose another place"
            )
    return Folder(uri, folder)


def _check_writable(uri: str, is_empty: bool, manifest: bytes | None, run_digest: str) -> None:
    """Refuse a destination by what lies there; see `Destination.require_writable`."""
    if is_empty:
        return
    if manifest is None:
        raise InputError(
            f"output.destination {uri}: not empty, and no {MANIFEST} says that this run wrote it; empty it, or choose "
            "another place"
        )
    try:
        other_digest = run_digest_of(manifest)
    except ValueError as error:
        raise InputError(f"output.destination {uri}: its {MANIFEST} cannot be read ({error})") from error
    if other_digest != run_digest:
        raise InputError(
            f"output.destination {uri}: holds the model of another run ({other_digest[:_SHOWN_DIGEST_CHARACTERS]}..., "
            f"this one is {run_digest[:_SHOWN_DIGEST_CHARACTERS]}...); empty it, or choose another place"
        )


class Folder:
    """Writes to a folder, which appears as a whole: the files are written next to it and renamed."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri = uri
        self._folder = folder

    def require_writable(self, run_digest: str) -> None:
        """Check the folder; see `Destination`."""
        if self._folder.exists() and not self._folder.is_dir():
            raise InputError(f"output.destination {self._uri}: is a file; a folder is needed")
        manifest = self._folder / MANIFEST
        is_empty = not self._folder.is_dir() or not any(self._folder.iterdir())
        content = manifest.read_bytes() if manifest.is_file() else None
        _check_writable(self._uri, is_empty, content, run_digest)

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Write the files next to the folder and replace it; see `Destination`."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        new = self._folder.with_name(f".{self._folder.name}.writing")
        old = self._folder.with_name(f".{self._folder.name}.before")
        shutil.rmtree(new, ignore_errors=True)
        # An earlier run was killed between the two renames below: its old folder is still the published one.
        if not self._folder.exists() and old.exists():
            old.rename(self._folder)
        for path in _files(folder):
            target = new / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            _fsync(target)
            heartbeat()
        shutil.rmtree(old, ignore_errors=True)
        # A rename cannot replace a folder that is not empty.
        if self._folder.exists():
            self._folder.rename(old)
        new.rename(self._folder)
        shutil.rmtree(old, ignore_errors=True)


class ObjectStore:
    """Writes below a prefix of a bucket, through fsspec; credentials come from the environment."""

    def __init__(self, uri: str, filesystem: AbstractFileSystem, root: str) -> None:
        self._uri = uri
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def require_writable(self, run_digest: str) -> None:
        """Check the prefix; see `Destination`."""
        try:
            paths = self._filesystem.find(self._root)
        except FileNotFoundError:
            paths = []
        manifest = f"{self._root}/{MANIFEST}"
        content = self._filesystem.cat_file(manifest) if self._filesystem.exists(manifest) else None
        _check_writable(self._uri, not paths, content, run_digest)

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Upload the files, the manifest last; see `Destination`."""
        for path in _files(folder):
            self._filesystem.put_file(str(path), f"{self._root}/{path.relative_to(folder).as_posix()}")
            heartbeat()


class Hub:
    """Writes to a model repository in one commit, so that all files appear at once."""

    def __init__(self, uri: str, repository: str) -> None:
        from huggingface_hub import HfApi

        self._uri = uri
        self._repository = repository
        self._api = HfApi()

    def require_writable(self, run_digest: str) -> None:
        """Check the repository; see `Destination`."""
        from huggingface_hub import hf_hub_download

        if not self._api.repo_exists(self._repository):
            return
        # The hub puts .gitattributes into every new repository.
        files = [name for name in self._api.list_repo_files(self._repository) if name != ".gitattributes"]
        content = None
        if MANIFEST in files:
            content = Path(hf_hub_download(self._repository, MANIFEST)).read_bytes()
        _check_writable(self._uri, not files, content, run_digest)

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Upload the files in one commit; see `Destination`."""
        heartbeat()
        self._api.create_repo(self._repository, private=True, exist_ok=True)
        self._api.upload_folder(
            repo_id=self._repository, folder_path=folder, commit_message="Publish the adapted model"
        )


def _files(folder: Path) -> list[Path]:
    """Return all files, the manifest last."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return sorted(paths, key=lambda path: path.name == MANIFEST)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
