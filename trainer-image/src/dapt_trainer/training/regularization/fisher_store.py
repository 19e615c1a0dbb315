"""The Fisher information on the work volume: found again by later tries and attempts of the same adaptation.

Layout, below the folder of the try that estimated it:

    fisher-KEY/part-00001.safetensors ...   fp32, by the weights' names, scaled to mean 1 over the group
    fisher-KEY.json                         the manifest; written last, and without it there is nothing

KEY begins the digest of everything that decides the numbers. A file is read only after its SHA-256 fits the manifest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from dapt_contract.base import Contract
from dapt_contract.checkpoint import FileEntry
from dapt_contract.envelope import ContractError, digest_of, fsync_folder, read_envelope, write_envelope
from dapt_contract.layout import STAGES
from dapt_trainer.errors import InfrastructureError
from dapt_trainer.training.models import sha256_of_file

FISHER_SCHEMA = "dapt.fisher"
_PART_BYTES = 2 * 2**30
_KEY_DIGITS = 16


class FisherKey(Contract):
    """Everything that decides the numbers, but for the order of sums over ranks."""

    weights_digest: str
    """Of the anchor's folder."""
    general_digest: str
    samples: int
    seed: int
    group: str
    names_digest: str
    """Of the held-back weights' names."""
    precision: str
    document_boundaries: bool

    @property
    def name(self) -> str:
        """Of the folder and its manifest."""
        return f"fisher-{digest_of(self).removeprefix('sha256:')[:_KEY_DIGITS]}"


class FisherManifest(Contract):
    """Written after the files."""

    key: FisherKey
    files: tuple[FileEntry, ...]
    file_of: dict[str, str]
    """Weight's name -> file."""
    mean: float
    """Before scaling: the mean of the squared gradient of a sequence's log-likelihood over the group."""
    sequences: int = Field(ge=1)


class StoredFisher:
    """A sound Fisher information on the volume; tensors are read one at a time."""

    def __init__(self, folder: Path, manifest: FisherManifest) -> None:
        self._folder, self.manifest = folder, manifest
        self._open: dict[str, Any] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Of a weight, fp32, in its shape.

        Raises:
            KeyError: the weight is not in the group.
        """
        from safetensors import safe_open

        file = self.manifest.file_of[name]
        if file not in self._open:
            self._open[file] = safe_open(self._folder / file, framework="pt")
        return self._open[file].get_tensor(name)


def find_fisher(work: Path, key: FisherKey) -> StoredFisher | None:
    """What some try of this adaptation left, whose every byte is right; None when there is none."""
    for path in sorted((work / STAGES).glob(f"*/try-*/{key.name}.json")):
        try:
            _, manifest = read_envelope(path, FISHER_SCHEMA, FisherManifest)
        except ContractError:
            continue
        folder = path.with_suffix("")
        if manifest.key == key and all(_is_sound(folder, entry) for entry in manifest.files):
            return StoredFisher(folder, manifest)
    return None


def _is_sound(folder: Path, entry: FileEntry) -> bool:
    path = folder / entry.path
    return (
        Path(entry.path).name == entry.path
        and path.is_file()
        and path.stat().st_size == entry.size_bytes
        and sha256_of_file(path) == entry.sha256
    )


def write_fisher(
    try_folder: Path,
    key: FisherKey,
    tensors: Mapping[str, torch.Tensor],
    *,
    mean: float,
    sequences: int,
    run_key: str,
) -> StoredFisher:
    """Write scaled tensors, files first and the manifest last.

    Raises:
        InfrastructureError: the disk is full; nothing half-written is left.
    """
    folder = try_folder / key.name
    try:
        manifest = _write_files(folder, key, tensors, mean, sequences)
        write_envelope(folder.with_suffix(".json"), FISHER_SCHEMA, manifest, run_key=run_key)
    except Exception as error:  # safetensors raises its own kind for a full disk
        shutil.rmtree(folder, ignore_errors=True)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InfrastructureError(
            f"the Fisher information could not be saved: {reason}. Make the volume larger; the next try measures it "
            "again"
        ) from error
    return StoredFisher(folder, manifest)


def _write_files(
    folder: Path, key: FisherKey, tensors: Mapping[str, torch.Tensor], mean: float, sequences: int
) -> FisherManifest:
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > _PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    files: list[FileEntry] = []
    file_of: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        path = folder / f"part-{number:05d}.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in part.items()}, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files.append(FileEntry(path=path.name, size_bytes=path.stat().st_size, sha256=sha256_of_file(path)))
        file_of |= dict.fromkeys(part, path.name)
    fsync_folder(folder)
    return FisherManifest(key=key, files=tuple(files), file_of=file_of, mean=mean, sequences=sequences)
