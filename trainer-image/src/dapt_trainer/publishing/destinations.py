"""Where a model goes: a folder (file://, pvc://), an object store (s3://, gs://), or a repository of the hub (hf://).

All three share the rule of `require_writable`: a destination that is not empty is written only when its `dapt.json`
carries the same run digest. In all three the manifest appears last (a folder appears at once, a commit is atomic).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dapt_trainer.data.reading.sources import filesystem_of
from dapt_trainer.errors import InputError
from dapt_trainer.publishing.published_files import MANIFEST, run_digest_of

Heartbeat = Callable[[], None]
SCHEMES = ("file", "pvc", "s3", "gs", "hf")
FIELD = "output.destination"


class Destination(Protocol):
    """A place that a model is written to."""

    def require_writable(self, run_digest: str) -> None:
        """Refuse what is not empty and not the same run's.

        Raises:
            InputError: it is not empty and another run's, or nobody knows whose.
        """
        ...

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Write a folder's files, the manifest last.

        Raises:
            OSError: disk or network failed.
        """
        ...


def open_destination(uri: str, *, work: Path) -> Destination:
    """The destination that a URI names.

    Args:
        uri: file:///PATH, pvc://CLAIM/FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or hf://ORG/NAME.
        work: root of the work volume, which is no destination.

    Raises:
        InputError: no known scheme, or a place inside the work volume's own folders.
    """
    scheme, found, rest = uri.partition("://")
    if not found or scheme not in SCHEMES or not rest.strip("/"):
        accepted = ", ".join(f"{name}://" for name in SCHEMES)
        raise InputError(f"output.destination {uri!r}: one of {accepted} with a place after it is accepted")
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
        if not inside or inside[0] in (
            "model",
            "model-extended",
            "data",
            "held-out",
            "tasks",
            "harness",
            "probes",
            "instructions",
            "preferences",
            "hf-cache",
            "stages",
        ):
            raise InputError(
                f"output.destination {uri!r}: lies inside the run's own work folder; choose another place"
            )
    return Folder(uri, folder)


def _judge(uri: str, is_empty: bool, manifest: bytes | None, run_digest: str) -> None:
    if is_empty:
        return
    if manifest is None:
        raise InputError(
            f"output.destination {uri}: not empty, and no {MANIFEST} says that this run wrote it; empty it, or choose "
            "another place"
        )
    try:
        found = run_digest_of(manifest)
    except ValueError as error:
        raise InputError(f"output.destination {uri}: its {MANIFEST} cannot be read ({error})") from error
    if found != run_digest:
        raise InputError(
            f"output.destination {uri}: holds the model of another run ({found[:19]}..., this one is "
            f"{run_digest[:19]}...); empty it, or choose another place"
        )


class Folder:
    """A folder that appears whole: written beside its place and renamed."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri = uri
        self._folder = folder

    def require_writable(self, run_digest: str) -> None:
        """See `Destination`."""
        if self._folder.exists() and not self._folder.is_dir():
            raise InputError(f"output.destination {self._uri}: is a file; a folder is needed")
        manifest = self._folder / MANIFEST
        is_empty = not self._folder.is_dir() or not any(self._folder.iterdir())
        _judge(self._uri, is_empty, manifest.read_bytes() if manifest.is_file() else None, run_digest)

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """See `Destination`. What the same run wrote before is replaced in one rename each way."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        beside = self._folder.with_name(f".{self._folder.name}.writing")
        before = self._folder.with_name(f".{self._folder.name}.before")
        shutil.rmtree(beside, ignore_errors=True)
        if not self._folder.exists() and before.exists():
            before.rename(self._folder)  # killed between the two renames
        for path in _files(folder):
            target = beside / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            _fsync(target)
            heartbeat()
        shutil.rmtree(before, ignore_errors=True)
        if self._folder.exists():
            self._folder.rename(before)
        beside.rename(self._folder)
        shutil.rmtree(before, ignore_errors=True)


class ObjectStore:
    """A prefix of a bucket, through fsspec; credentials come from the environment."""

    def __init__(self, uri: str, files: Any, root: str) -> None:
        self._uri = uri
        self._files = files
        self._root = root.rstrip("/")

    def require_writable(self, run_digest: str) -> None:
        """See `Destination`."""
        try:
            found = self._files.find(self._root)
        except FileNotFoundError:
            found = []
        manifest = f"{self._root}/{MANIFEST}"
        content = self._files.cat_file(manifest) if self._files.exists(manifest) else None
        _judge(self._uri, not found, content, run_digest)

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """See `Destination`."""
        for path in _files(folder):
            self._files.put_file(str(path), f"{self._root}/{path.relative_to(folder).as_posix()}")
            heartbeat()


class Hub:
    """A model repository; one commit, so it appears whole."""

    def __init__(self, uri: str, repository: str) -> None:
        from huggingface_hub import HfApi

        self._uri = uri
        self._repository = repository
        self._api = HfApi()

    def require_writable(self, run_digest: str) -> None:
        """See `Destination`. A repository with nothing but its attributes file is empty."""
        from huggingface_hub import hf_hub_download

        if not self._api.repo_exists(self._repository):
            return
        files = [name for name in self._api.list_repo_files(self._repository) if name != ".gitattributes"]
        content = None
        if MANIFEST in files:
            content = Path(hf_hub_download(self._repository, MANIFEST)).read_bytes()
        _judge(self._uri, not files, content, run_digest)

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """See `Destination`."""
        heartbeat()
        self._api.create_repo(self._repository, private=True, exist_ok=True)
        self._api.upload_folder(
            repo_id=self._repository, folder_path=folder, commit_message="Publish the adapted model"
        )


def _files(folder: Path) -> list[Path]:
    """All files, the manifest last."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return sorted(paths, key=lambda path: path.name == MANIFEST)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
