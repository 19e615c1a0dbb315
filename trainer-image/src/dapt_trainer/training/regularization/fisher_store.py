"""Stores the Fisher information on the work volume for later runs and attempts of the same adaptation.

Layout, below the folder of the run that estimated it:

    fisher-KEY/part-RANK-001.safetensors ...   fp32, by the weights' names, scaled to mean 1 over the group
    fisher-KEY.json                            the manifest, written last; without it the files are ignored

KEY begins the digest of everything that decides the values. A file is read only after its SHA-256 matches the manifest,
which is signed like a checkpoint's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import Field, TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file

from dapt_contract.base import Contract
from dapt_contract.checkpoint import FileEntry
from dapt_contract.envelope import ContractError, digest_of, fsync_folder, read_envelope, write_envelope
from dapt_contract.layout import STAGES
from dapt_contract.sentences import shortened
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InfrastructureError

logger = logging.getLogger(__name__)
FISHER_SCHEMA = "dapt.fisher"
_Written = tuple[list[FileEntry], dict[str, str], str]
"""What one rank wrote: its files, the file of each weight, and the problem that ended it; empty: none."""
_WRITTEN: TypeAdapter[_Written] = TypeAdapter(_Written)
_PART_BYTES = 2 * 2**30
_KEY_DIGITS = 16


class FisherKey(Contract):
    """Holds everything that decides the values, apart from the order of sums over ranks."""

    weights_digest: str
    """Digest of the anchor's folder."""
    general_digest: str
    samples: int
    seed: int
    group: str
    names_digest: str
    """Digest of the penalized weights' names."""
    precision: str
    document_boundaries: bool

    @property
    def name(self) -> str:
        """Return the name of the folder and its manifest."""
        return f"fisher-{digest_of(self).removeprefix('sha256:')[:_KEY_DIGITS]}"


class FisherManifest(Contract):
    """Lists the files of a stored Fisher information."""

    key: FisherKey
    files: tuple[FileEntry, ...]
    file_of: dict[str, str]
    """File by the name of the weight."""
    mean: float
    """Mean before scaling, over the group, of the squared gradient of a sequence's log-likelihood."""
    sequences: int = Field(ge=1)


class StoredFisher:
    """Reads a stored Fisher information, one tensor at a time."""

    def __init__(self, folder: Path, manifest: FisherManifest) -> None:
        self._folder, self.manifest = folder, manifest
        self._open: dict[str, safe_open] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Return the importance of a weight, fp32, in its shape.

        Raises:
            KeyError: the weight is not in the group.
        """
        file = self.manifest.file_of[name]
        if file not in self._open:
            self._open[file] = safe_open(self._folder / file, framework="pt")
        tensor: torch.Tensor = self._open[file].get_tensor(name)
        return tensor


def find_fisher(work: Path, key: FisherKey, signing_key: bytes) -> StoredFisher | None:
    """Return what some run of this adaptation stored, if signature and all digests match; None when there is none."""
    for path in sorted((work / STAGES).glob(f"*/try-*/{key.name}.json")):
        try:
            _, manifest = read_envelope(path, FISHER_SCHEMA, FisherManifest, key=signing_key)
        # A damaged file costs a new estimate and never the run.
        except (ContractError, OSError) as error:
            logger.warning("%s; the Fisher information is measured again", error)
            continue
        folder = path.with_suffix("")
        if manifest.key == key and all(_is_intact(folder, entry) for entry in manifest.files):
            return StoredFisher(folder, manifest)
    return None


def _is_intact(folder: Path, entry: FileEntry) -> bool:
    path = folder / entry.path
    return (
        # A manifest must not lead to a file outside of its folder.
        Path(entry.path).name == entry.path
        and path.is_file()
        and not path.is_symlink()
        and path.stat().st_size == entry.size_bytes
        and sha256_of_file(path) == entry.sha256
    )


def save_fisher(
    try_folder: Path,
    key: FisherKey,
    tensors: Mapping[str, torch.Tensor],
    ranks: Ranks,
    *,
    mean: float,
    run_key: str,
    signing_key: bytes,
) -> None:
    """Write scaled tensors, each rank its own; files first and the manifest last. All ranks call it.

    Args:
        try_folder: folder of the run that writes.
        key: of the values.
        tensors: of this rank, by the weights' names.
        ranks: that estimated it.
        mean: before scaling.
        run_key: of the run that writes.
        signing_key: signs the manifest.

    Raises:
        InfrastructureError: the disk is full on some rank; the files are removed.
    """
    folder = try_folder / key.name
    if ranks.is_first:
        remove_folder(folder)
        # Empty: a save that did not get as far as its manifest may have left files.
        folder.mkdir(parents=True)
    ranks.barrier()
    files: list[FileEntry] = []
    file_of: dict[str, str] = {}
    problem = ""
    try:
        for number, part in enumerate(_parts(tensors), start=1):
            entry = _write_part(folder / f"part-{ranks.rank:03d}-{number:03d}.safetensors", part)
            files.append(entry)
            file_of |= dict.fromkeys(part, entry.path)
    except Exception as error:  # safetensors raises its own kind for a full disk
        problem = shortened(" ".join(str(error).split()), 200) or type(error).__name__
    # Every rank reports its problem before any of them raises: a rank that left early would hang the others.
    written = ranks.gather((files, file_of, problem), _WRITTEN)
    problems = [of_rank for _, _, of_rank in written if of_rank]
    if ranks.is_first and not problems:
        fsync_folder(folder)
        manifest = FisherManifest(
            key=key,
            files=tuple(entry for entries, _, _ in written for entry in entries),
            file_of={name: file for _, of_rank, _ in written for name, file in of_rank.items()},
            mean=mean,
            sequences=key.samples,
        )
        try:
            write_envelope(
                folder.with_suffix(".json"), FISHER_SCHEMA, manifest, run_key=run_key, key=signing_key
            )
        except OSError as error:
            problems = [str(error)]
    reason = ranks.from_first(lambda: problems[0] if problems else "", TypeAdapter(str))
    if reason:
        if ranks.is_first:
            remove_folder(folder)
        raise InfrastructureError(
            f"the Fisher information could not be saved: {reason}; enlarge the volume, and the next run measures it "
            "again"
        )


def _parts(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors in parts of at most `_PART_BYTES`, unless one tensor is larger."""
    part: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if part and sum(held.nbytes for held in part.values()) + tensor.nbytes > _PART_BYTES:
            yield part
            part = {}
        part[name] = tensor
    if part:
        yield part


def _write_part(path: Path, part: Mapping[str, torch.Tensor]) -> FileEntry:
    save_file({name: tensor.cpu().contiguous() for name, tensor in part.items()}, path)
    with path.open("rb") as file:
        # On disk before the manifest lists it.
        os.fsync(file.fileno())
    return FileEntry(path=path.name, size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
