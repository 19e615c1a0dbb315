"""Hashes the weights of models once for all ranks of a stage: each file is read by one of them.

Every rank then compares the same digests with what was recorded, and all refuse changed weights with the same sentence.
What is hashed is what is loaded: each rank has noted what the files are before any of them is read, and compares that
again once its model is loaded (`HeldWeights`).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import TypeAdapter

from dapt_contract.stages.common import Member, ModelReference, RecordedDigests
from dapt_trainer.context import ProgressBoard
from dapt_trainer.digests import HeldWeights, digest_of_weights, loaded_files, sha256_of_file
from dapt_trainer.distributed import Ranks

_THREADS = 4
_FILES = TypeAdapter(list[tuple[str, str, int]])
_DIGESTS = TypeAdapter(dict[int, str])


class SharedDigests:
    """Holds the digests of all folders of weights that a stage reads, and what their files were before."""

    def __init__(
        self,
        work: Path,
        references: Iterable[ModelReference],
        recorded: Iterable[RecordedDigests],
        ranks: Ranks,
        progress: ProgressBoard,
    ) -> None:
        """Read every file once; all ranks call this alike.

        Args:
            work: root of the work volume.
            references: models that are going to be loaded.
            recorded: what is recorded of them.
            ranks: of the stage.
            progress: gets a heartbeat with each block.

        Raises:
            InputError: a folder has no safetensors file.
        """
        references = list(references)
        self._held = HeldWeights(work, references)
        # No file is read before every rank has noted what it is: one that is swapped in between is seen by all.
        ranks.barrier()
        folders = _folders(references, recorded)
        files = ranks.from_first(lambda: _files(work, folders), _FILES)
        own = _share_of([size for _, _, size in files], ranks.rank, ranks.world_size)
        with ThreadPoolExecutor(max(1, _THREADS // ranks.world_size)) as pool:
            hashes = pool.map(
                lambda number: sha256_of_file(work / files[number][0] / files[number][1], progress.heartbeat),
                own,
            )
            hashed = dict(zip(own, hashes, strict=True))
        by_folder: dict[str, dict[str, str]] = {name: {} for name in folders}
        for of_rank in ranks.gather(hashed, _DIGESTS):
            for number, digest in of_rank.items():
                folder, name, _ = files[number]
                by_folder[folder][name] = digest
        self.by_folder = {name: digest_of_weights(digests) for name, digests in by_folder.items()}
        """Digest of each folder by its path relative to the volume, for `digests.checked_reference_digest`."""

    def require_unchanged(self) -> None:
        """Raise if a file is another one than before it was hashed; call it once a model is loaded.

        Raises:
            InfrastructureError: names the folder.
        """
        self._held.require_unchanged()


def _folders(references: Iterable[ModelReference], recorded: Iterable[RecordedDigests]) -> list[str]:
    """Return every folder that a model is made of or of which a digest is recorded, once."""
    folders: dict[str, None] = {}
    for reference in references:
        parts: tuple[ModelReference | Member, ...] = (reference, *reference.averaged_with)
        for part in parts:
            folders |= dict.fromkeys((part.weights, *part.adapters))
        folders |= dict.fromkeys(reference.tuned)
        if reference.interpolation != 1.0:
            folders[reference.origin] = None
    for digests in recorded:
        folders |= dict.fromkeys(name for name, _ in digests.folders)
    return list(folders)


def _files(work: Path, folders: Iterable[str]) -> list[tuple[str, str, int]]:
    """Return (folder, file in it, bytes) of every file that is loaded.

    Raises:
        InputError: as `loaded_files`.
    """
    return [
        (folder, name, (work / folder / name).stat().st_size)
        for folder in folders
        for name in loaded_files(work / folder)
    ]


def _share_of(sizes: list[int], rank: int, world_size: int) -> list[int]:
    """Return the numbers of the files that a rank reads: the largest first, each by the rank with the fewest bytes."""
    bytes_of_ranks = [0] * world_size
    own: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        reader = bytes_of_ranks.index(min(bytes_of_ranks))
        bytes_of_ranks[reader] += sizes[number]
        if reader == rank:
            own.append(number)
    return own
