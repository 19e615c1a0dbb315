"""Writes a model to a folder (file://, pvc://), an object store (s3://, gs://), or a repository of the hub (hf://).

All three follow the same rule (`require_writable`): a destination that is not empty is written only when its
`dapt.json` has the same run digest. In all three the manifest appears last: in an object store it is written last, a
folder appears as a whole, and a commit is atomic.

`probe` does before the training what publishing will do after it, as far as that leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from dapt_contract.inputs.bucket_names import bucket_fault
from dapt_contract.layout import HUB_CACHE, PREPARED, STAGES
from dapt_contract.untrusted.folders import paths_below, remove_folder
from dapt_trainer.data.reading.sources import filesystem_of
from dapt_trainer.errors import InputError
from dapt_trainer.limited_time import while_beating
from dapt_trainer.publishing.destination_errors import FIELD, errors_as_sentences
from dapt_trainer.publishing.published_files import MANIFEST, read_manifest, run_digest_of
from dapt_trainer.publishing.upload_notes import MAX_NOTES, NOTE_PREFIX, contents_of, note_name, notes_in

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Heartbeat = Callable[[], None]
Found = Literal["empty", "ours"]
"""What lies at a destination that may be written: nothing, or a result of the same run."""
_RESERVED_FOLDERS = frozenset((*PREPARED, HUB_CACHE, STAGES))
"""Folders of the work volume that no model may be published into."""
_SHOWN_DIGEST_CHARACTERS = 19
PROBE = ".dapt-probe"
"""Name of the object that is written and removed; where it may not be removed, it counts as nothing."""


class Destination(Protocol):
    """Describes a place that a model can be written to."""

    def require_writable(self, run_digest: str) -> Found:
        """Refuse a destination that is not empty and was not written by the same run.

        Raises:
            InputError: it holds another run's model, or files of unknown origin; or it cannot be read.
            InfrastructureError: the network failed.
        """
        ...

    def probe(self) -> None:
        """Write something and remove it, with the credentials that publishing will have.

        Raises:
            InputError: the credentials do not suffice, or the place does not exist.
            InfrastructureError: the network failed, or the disk is full.
        """
        ...

    def staging(self, own: Path) -> Path:
        """Return an absent folder to assemble the model in, which `write` then takes.

        Args:
            own: folder of the run that is used where the destination has no place for it.

        Raises:
            InputError, InfrastructureError: as `probe`.
        """
        ...

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Write a folder's files, the manifest last: what was begun and has none is written again.

        Raises:
            InputError, InfrastructureError: as `probe`.
        """
        ...


def open_destination(uri: str, *, work: Path) -> Destination:
    """Return the destination that a URI names.

    Args:
        uri: file:///PATH, pvc://CLAIM/FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or hf://ORG/NAME.
        work: root of the work volume, whose own folders are no destinations.

    Raises:
        InputError: the scheme is unknown, its library does not accept the name, or the place is inside the work
            volume's own folders.
    """
    scheme, _, rest = uri.partition("://")
    if scheme not in OPENERS or not rest.strip("/"):
        accepted = ", ".join(f"{name}://" for name in OPENERS)
        raise InputError(f"{FIELD} {uri!r}: accepted is one of {accepted} with a path after it")
    return OPENERS[scheme](uri, work)


def _open_claim(uri: str, work: Path) -> Destination:
    if "/" not in uri.partition("://")[2].strip("/"):
        raise InputError(
            f"{FIELD} {uri!r}: the claim itself cannot be replaced as a whole; write pvc://CLAIM/FOLDER"
        )
    return _open_folder(uri, work)


def _open_folder(uri: str, work: Path) -> Destination:
    _, path, _ = filesystem_of(uri, FIELD)
    # A link to a folder on a larger disk stays a link: what it points to is replaced.
    folder = Path(path).resolve()
    if folder == work.resolve() or work.resolve() in folder.parents:
        inside = folder.relative_to(work.resolve()).parts
        if not inside or inside[0] in _RESERVED_FOLDERS:
            raise InputError(f"{FIELD} {uri!r}: lies inside the run's own work folder; choose another place")
    return Folder(uri, folder)


def _open_bucket(uri: str, work: Path) -> Destination:  # noqa: ARG001
    files, path, _ = filesystem_of(uri, FIELD)
    if fault := bucket_fault(uri):
        raise InputError(f"{FIELD} {uri!r}: {fault}")
    return ObjectStore(uri, files, path)


def _open_repository(uri: str, work: Path) -> Destination:  # noqa: ARG001
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    repository = uri.partition("://")[2].strip("/")
    if repository.count("/") != 1:
        raise InputError(f"{FIELD} {uri!r}: a model on the hub is hf://ORG/NAME, without revision or folder")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(
            f"{FIELD} {uri!r}: the hub does not accept {repository!r}: at most 96 letters, digits, '-', '_' and '.', "
            "none of '--' and '..', and '-' or '.' neither first nor last; choose another name"
        ) from error
    return Hub(uri, repository)


OPENERS: dict[str, Callable[[str, Path], Destination]] = {
    "file": _open_folder,
    "pvc": _open_claim,
    "s3": _open_bucket,
    "gs": _open_bucket,
    "hf": _open_repository,
}
"""By scheme: opens the destination of a URI, given the root of the work volume. Raises InputError."""


def _check_writable(uri: str, is_empty: bool, manifest: bytes | None, run_digest: str) -> Found:
    """Refuse a destination by what lies there; see `Destination.require_writable`."""
    if is_empty:
        return "empty"
    if manifest is None:
        raise InputError(
            f"{FIELD} {uri}: not empty, and no {MANIFEST} says that this run wrote it; empty it, or choose "
            "another place"
        )
    try:
        other_digest = run_digest_of(manifest)
    except ValueError as error:
        raise InputError(
            f"{FIELD} {uri}: not empty, and its {MANIFEST} is none that dapt wrote; empty it, or choose another place"
        ) from error
    if other_digest != run_digest:
        raise InputError(
            f"{FIELD} {uri}: holds the model of another run ({other_digest[:_SHOWN_DIGEST_CHARACTERS]}..., "
            f"this one is {run_digest[:_SHOWN_DIGEST_CHARACTERS]}...); empty it, or choose another place"
        )
    return "ours"


class Folder:
    """Writes to a folder, which appears as a whole: the files are written next to it and renamed.

    A model that is assembled in `staging` is there already, so that no byte of it is written twice.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri = uri
        self._folder = folder
        self._staging = folder.with_name(f".{folder.name}.writing")

    def require_writable(self, run_digest: str) -> Found:
        """Check the folder; see `Destination`."""
        with errors_as_sentences(self._uri, "read"):
            for path in (self._folder, *self._folder.parents):
                if path.exists() and not path.is_dir():
                    name = "it" if path == self._folder else str(path)
                    raise InputError(f"{FIELD} {self._uri}: {name} is a file; a folder is needed")
            if self._folder.is_mount():
                raise InputError(
                    f"{FIELD} {self._uri}: is where a volume is mounted, which cannot be replaced as a whole; name a "
                    "folder on it"
                )
            manifest = self._folder / MANIFEST
            is_empty = not self._folder.is_dir() or not any(self._folder.iterdir())
            content = read_manifest(manifest) if manifest.is_file() else None
        return _check_writable(self._uri, is_empty, content, run_digest)

    def probe(self) -> None:
        """Make and remove a folder next to it, and the folders above it; see `Destination`."""
        with errors_as_sentences(self._uri, "written"):
            missing = [folder for folder in self._folder.parents if not folder.exists()]
            probe = self._folder.with_name(f".{self._folder.name}.probing")
            try:
                probe.mkdir(parents=True, exist_ok=True)
                (probe / PROBE).write_bytes(b"dapt")
            finally:
                remove_folder(probe)
                for folder in missing:
                    # Another run may have put something there meanwhile.
                    with contextlib.suppress(OSError):
                        folder.rmdir()

    def staging(self, own: Path) -> Path:  # noqa: ARG002
        """Return a folder next to the destination; see `Destination`."""
        with errors_as_sentences(self._uri, "written"):
            # Left from a run that was killed.
            remove_folder(self._staging)
            self._folder.parent.mkdir(parents=True, exist_ok=True)
        return self._staging

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Write the files next to the folder, where they are not there yet, and replace it; see `Destination`."""
        with errors_as_sentences(self._uri, "written"):
            self._write(folder, heartbeat)

    def _write(self, folder: Path, heartbeat: Heartbeat) -> None:
        new = self._staging
        old = self._folder.with_name(f".{self._folder.name}.before")
        if folder != new:
            self.staging(folder)
            for path in _files(folder):
                target = new / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                heartbeat()
        # An earlier run was killed between the two renames below: its old folder is still the published one.
        if not self._folder.exists() and old.exists():
            old.rename(self._folder)
        for path in _files(new):
            _fsync(path)
            heartbeat()
        remove_folder(old)
        # A rename cannot replace a folder that is not empty.
        if self._folder.exists():
            self._folder.rename(old)
        new.rename(self._folder)
        remove_folder(old)


class ObjectStore:
    """Writes below a prefix of a bucket, through fsspec; credentials come from the environment."""

    def __init__(self, uri: str, filesystem: AbstractFileSystem, root: str) -> None:
        self._uri = uri
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def require_writable(self, run_digest: str) -> Found:
        """Check the prefix; see `Destination`."""
        with errors_as_sentences(self._uri, "read"):
            # Listings are cached for the life of the process.
            self._filesystem.invalidate_cache()
            sizes = self._sizes()
            notes = notes_in(self._root, sizes)
            paths = sizes.keys() - set(notes) - {f"{self._root}/{PROBE}"}
            manifest = f"{self._root}/{MANIFEST}"
            # Objects without a manifest are those of the upload whose note lies there.
            sources = [manifest] if manifest in sizes else notes
            if len(sources) > MAX_NOTES:
                raise InputError(
                    f"{FIELD} {self._uri}: has {len(notes)} notes of uploads ({NOTE_PREFIX}...) where {MAX_NOTES} are "
                    "accepted; empty it, or choose another place"
                )
            contents = contents_of(self._filesystem, sources, sizes)
        # A note without objects too: its run may be about to put the first one there.
        for content in contents:
            _check_writable(self._uri, False, content, run_digest)
        return _check_writable(self._uri, not paths, contents[0] if contents else None, run_digest)

    def probe(self) -> None:
        """Put an object and remove it; see `Destination`."""
        path = f"{self._root}/{PROBE}"
        with errors_as_sentences(self._uri, "written"):
            self._filesystem.pipe_file(path, b"dapt")
        # Publishing removes nothing, so credentials that may only add objects are enough.
        with contextlib.suppress(Exception):
            self._filesystem.rm_file(path)

    def staging(self, own: Path) -> Path:
        """Return the run's own folder; see `Destination`."""
        return own

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Upload the files that a run before has not uploaded, the manifest last; see `Destination`."""
        manifest = (folder / MANIFEST).read_bytes()
        note = f"{self._root}/{note_name(manifest)}"
        with errors_as_sentences(self._uri, "written"):
            self._filesystem.invalidate_cache()
            sizes = self._sizes()
            is_continued = notes_in(self._root, sizes) == [note]
            if note not in sizes:
                self._filesystem.pipe_file(note, manifest)
            for path in _files(folder):
                target = f"{self._root}/{path.relative_to(folder).as_posix()}"
                if is_continued and path.name != MANIFEST and sizes.get(target) == path.stat().st_size:
                    heartbeat()
                    continue
                while_beating(partial(self._filesystem.put_file, str(path), target), heartbeat)
        for left in {*notes_in(self._root, sizes), note}:
            # Credentials that may only add objects are enough.
            with contextlib.suppress(Exception):
                self._filesystem.rm_file(left)

    def _sizes(self) -> dict[str, int]:
        try:
            found = self._filesystem.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {path: int(info["size"]) for path, info in found.items()}


class Hub:
    """Writes to a model repository in one commit, so that all files appear at once."""

    def __init__(self, uri: str, repository: str) -> None:
        from huggingface_hub import HfApi

        self._uri = uri
        self._repository = repository
        self._api = HfApi()

    def require_writable(self, run_digest: str) -> Found:
        """Check the repository; see `Destination`."""
        from huggingface_hub import hf_hub_download

        with errors_as_sentences(self._uri, "read"):
            if not self._api.repo_exists(self._repository):
                return "empty"
            # The hub puts .gitattributes into every new repository.
            files = [name for name in self._api.list_repo_files(self._repository) if name != ".gitattributes"]
            content = None
            if MANIFEST in files:
                content = read_manifest(Path(hf_hub_download(self._repository, MANIFEST)))
        return _check_writable(self._uri, not files, content, run_digest)

    def probe(self) -> None:
        """Ask for the right to write to the repository; see `Destination`.

        One that does not exist is made and removed again: a commit would stay in the history of one that does.
        """
        with errors_as_sentences(self._uri, "written"):
            if self._api.repo_exists(self._repository):
                self._api.auth_check(self._repository, write=True)
                return
            self._api.create_repo(self._repository, private=True, exist_ok=False)
        # Whoever may make a repository may not always remove it; an empty one is as good as none.
        with contextlib.suppress(Exception):
            self._api.delete_repo(self._repository)

    def staging(self, own: Path) -> Path:
        """Return the run's own folder; see `Destination`."""
        return own

    def write(self, folder: Path, *, heartbeat: Heartbeat) -> None:
        """Upload the files in one commit; see `Destination`."""

        def upload() -> None:
            self._api.create_repo(self._repository, private=True, exist_ok=True)
            self._api.upload_folder(
                repo_id=self._repository, folder_path=folder, commit_message="Publish the adapted model"
            )

        with errors_as_sentences(self._uri, "written"):
            # One call for all files, however long they take; its requests have time limits of their own.
            while_beating(upload, heartbeat)


def _files(folder: Path) -> list[Path]:
    """Return all files, the manifest last."""
    paths = [path for path in paths_below(folder) if path.is_file()]
    return sorted(paths, key=lambda path: path.name == MANIFEST)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
