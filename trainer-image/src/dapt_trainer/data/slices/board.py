"""Shares the slices of a corpus among the processes of all pods of a run, by files on the work volume.

Below the run's own folder, for each slice:

    claims/NAME     exists once a process has taken it: of several that create it one succeeds
    slices/NAME/    what it leaves (`records`); it gets this name when everything in it is on disk
    failed/SOURCE   exists once a slice of the source has shown that the source cannot be used

A run that was killed before has left such folders below its own. Slices of it with the same identity are moved here
after their content was compared with its digests, so a kill costs the slices that were being read. Nothing expires: a
pod that dies ends the run with all its pods, and the next run looks at no claim of an earlier one.

Should two processes read one slice all the same, because a node came back or a file system gave both the claim, each
has a folder of its own until it is finished. The first one that gets the name stays.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from dapt_contract.envelope import ContractError, fsync_folder
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.data.reading.text_batches import MAX_SHOWN_BAD_RECORDS
from dapt_trainer.data.slices.cut import CorpusSlice, CorpusSource
from dapt_trainer.data.slices.records import SliceRecord, SliceSpool

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""How the rename of a folder fails where something has its new name already."""
_CLAIMS, _SLICES, _FAILED = "claims", "slices", "failed"


class SliceBoard:
    """Knows which slices are taken and which are finished."""

    def __init__(self, folder: Path, earlier: Sequence[Path] = (), key: bytes = b"") -> None:
        """
        Args:
            folder: of this run, the same in all its pods.
            earlier: such folders of earlier runs of the same work, the newest first.
            key: that signs what slices leave; empty: it is not signed.
        """
        self.key = key
        self.folder = folder
        self._earlier = tuple(earlier)
        for name in (_CLAIMS, _SLICES, _FAILED):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def claim(self, corpus_slice: CorpusSlice) -> bool:
        """Take a slice, unless another process has taken it or its source cannot be used anyway."""
        if self.has_failed(corpus_slice.source):
            return False
        try:
            # "x": the file system lets one of several processes create it.
            (self.folder / _CLAIMS / corpus_slice.name).open("x").close()
        except (FileExistsError, FileNotFoundError):
            return False  # taken; or the first pod has finished, and removed the folder
        return True

    def has_failed(self, source: CorpusSource) -> bool:
        """Return whether a slice has shown that its source cannot be used."""
        return (self.folder / _FAILED / source.name).exists()

    def finished(self) -> frozenset[str]:
        """Return the names of all slices that are finished."""
        return frozenset(name for name in os.listdir(self.folder / _SLICES) if not name.startswith("."))

    def spool(self, corpus_slice: CorpusSlice) -> SliceSpool:
        """Return what a finished slice left.

        Raises:
            ContractError: it is not finished, or was altered since.
        """
        return SliceSpool(self.folder / _SLICES / corpus_slice.name, self.key)

    def finish(
        self, corpus_slice: CorpusSlice, identity: str, read: Callable[[Path], SliceRecord], *, may_fail: bool
    ) -> SliceRecord:
        """Finish a slice: take what an earlier run has left of it, or read it.

        Args:
            corpus_slice: that this process has claimed.
            identity: of its content.
            read: reads the slice into a folder that it makes.
            may_fail: whether any bad record makes a source useless.
        """
        record = self._from_earlier_run(corpus_slice, identity)
        if record is None:
            # Nobody else's: another process that reads the slice too would write into it.
            unfinished = self.folder / _SLICES / f".{corpus_slice.name}-{uuid.uuid4().hex}"
            record = self._put(unfinished, read(unfinished), corpus_slice)
        if record.failures or (may_fail and len(record.shown) >= MAX_SHOWN_BAD_RECORDS):
            (self.folder / _FAILED / corpus_slice.source.name).touch()
        return record

    def _put(self, folder: Path, record: SliceRecord, corpus_slice: CorpusSlice) -> SliceRecord:
        """Give a finished folder its name, unless the same slice has it already; return the record of what has it.

        Raises:
            OSError: what has the name cannot be removed, or the volume fails.
        """
        fsync_folder(folder)
        target = self.folder / _SLICES / corpus_slice.name
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            if finished := _read_whole(target, record.identity, self.key):
                remove_folder(folder)
                return finished.record
            # No slice: nobody finishes one without its record.
            remove_folder(target)
            folder.rename(target)
        fsync_folder(self.folder / _SLICES)
        return record

    def _from_earlier_run(self, corpus_slice: CorpusSlice, identity: str) -> SliceRecord | None:
        for folder in self._earlier:
            spool = _read_whole(folder / _SLICES / corpus_slice.name, identity, self.key)
            if spool is not None:
                try:
                    return self._put(spool.folder, spool.record, corpus_slice)
                except OSError:
                    continue  # another run has just moved it
        return None


def _read_whole(folder: Path, identity: str, key: bytes) -> SliceSpool | None:
    """Return what a slice of this identity left, if it has kept all of its content."""
    if folder.is_symlink():
        return None  # its name would be given to the link
    try:
        spool = SliceSpool(folder, key)
        # What was written before a power cut may have lost its last blocks, whatever its size.
        return spool if spool.record.identity == identity and spool.is_unchanged() else None
    except (ContractError, OSError):
        return None
