"""Collects what a rank is about to save in host memory, and writes it later with digests that are taken on the way.

A save has two parts. The first copies everything out of the model and its optimizer, which must not change meanwhile:
`add_tensors`, and `capturing` for what libraries write by name. The second, `write`, needs neither the model nor an
accelerator nor other ranks, so a thread does it while training continues. Each file is hashed as it is written, and
nothing is read back from the volume.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import torch

from dapt_contract.checkpoint import FileEntry
from dapt_contract.untrusted.folders import paths_below, remove_folder
from dapt_trainer.safetensors_header import safetensors_header

_save = torch.save
"""Kept, because `capturing` replaces it."""
_TensorKey: TypeAlias = tuple[int, int, torch.Size, tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class _Pickle:
    """Holds an object of containers and tensors for `torch.save`."""

    content: object
    size_bytes: int


@dataclass(frozen=True)
class _Tensors:
    """Holds the tensors of a safetensors file by name, contiguous and in host memory."""

    tensors: Mapping[str, torch.Tensor]


class StagedFiles:
    """Holds the files that one rank saves, by their paths relative to the folder that they are written to.

    Args:
        scratch: private folder for text that libraries write by name; removed when that was read.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = Path(os.path.abspath(scratch))
        self._files: dict[str, bytes | _Pickle | _Tensors] = {}
        self._copied: torch.cuda.Event | None = None
        """Passed once all copies from the accelerator have arrived."""

    def add_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add a safetensors file; the tensors are copied unless they are in host memory already.

        Args:
            name: path of the file.
            tensors: contiguous if they are on the CPU. Whoever adds one that training changes passes a copy.
        """
        self._files[name] = _Tensors(
            {key: _to_host(tensor) if tensor.is_cuda else tensor.detach() for key, tensor in tensors.items()}
        )
        self._note_copies()

    @contextlib.contextmanager
    def capturing(self, name: str = "") -> Iterator[Path]:
        """Yield a folder whose files become files below `name`; what `torch.save` is given there is copied.

        `torch.save` is replaced within the block, for the libraries that call it. Everything else that is written to
        the folder is text of some kilobytes, which is read into memory at the end.
        """
        remove_folder(self._scratch)
        folder = self._scratch / name
        folder.mkdir(parents=True)

        # As the libraries call it; of its options none changes the content.
        def save(content: object, f: object, *_: object, **__: object) -> None:
            if not isinstance(f, str | os.PathLike):
                raise TypeError(
                    f"a state was to be saved to {type(f).__name__}, which is no file of the checkpoint"
                )
            path = Path(os.path.abspath(f))
            copies: dict[_TensorKey, torch.Tensor] = {}
            state = _Pickle(_snapshot(content, copies), sum(tensor.nbytes for tensor in copies.values()))
            self._files[path.relative_to(self._scratch).as_posix()] = state

        torch.save = save  # type: ignore[assignment] # the libraries know no other way out
        try:
            yield folder
        finally:
            torch.save = _save
        for path in paths_below(self._scratch):
            if path.is_file():
                self._files[path.relative_to(self._scratch).as_posix()] = path.read_bytes()
        remove_folder(self._scratch)
        self._note_copies()

    @property
    def size_bytes(self) -> int:
        """Return about how many bytes are to be written."""
        return sum(map(_size_of, self._files.values()))

    def remove(self, name: str) -> None:
        """Leave out a file that a library has written."""
        self._files.pop(name, None)

    def names(self) -> tuple[str, ...]:
        """Return the paths of the files."""
        return tuple(self._files)

    def write(self, folder: Path) -> tuple[FileEntry, ...]:
        """Write the files below a folder, flush them to disk, and return their sizes and digests; once.

        Raises:
            OSError, RuntimeError: the disk is full.
        """
        if self._copied is not None:
            self._copied.synchronize()
        entries = []
        for name in sorted(self._files):
            # Taken out one by one: the memory of a written file is free for the next step.
            entries.append(_write_file(folder, name, self._files.pop(name)))
        return tuple(entries)

    def _note_copies(self) -> None:
        # Training may go on at once: its kernels run on the same stream, behind the copies.
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._copied = torch.cuda.Event()
            self._copied.record()


def _size_of(content: bytes | _Pickle | _Tensors) -> int:
    if isinstance(content, bytes):
        return len(content)
    if isinstance(content, _Pickle):
        return content.size_bytes
    return sum(tensor.nbytes for tensor in content.tensors.values())


@contextlib.contextmanager
def hashing_saves(root: Path, *, but: Path) -> Iterator[list[FileEntry]]:
    """Hash what `torch.save` writes below a folder within the block; yield the list that gets the files.

    Args:
        root: folder that the paths in the list are relative to.
        but: folder of temporary files, which are not listed.
    """
    entries: list[FileEntry] = []
    top, temporary = Path(os.path.abspath(root)), Path(os.path.abspath(but))

    def save(content: object, f: str | os.PathLike[str]) -> None:
        path = Path(os.path.abspath(f))
        if path.is_relative_to(temporary):
            _save(content, path)
        else:
            name = path.relative_to(top).as_posix()
            entries.append(_write_file(top, name, _Pickle(content, size_bytes=0)))

    torch.save = save  # type: ignore[assignment] # the libraries know no other way out
    try:
        yield entries
    finally:
        torch.save = _save


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy in host memory that training does not change."""
    source = tensor.detach()
    return _to_host(source) if source.is_cuda else source.clone(memory_format=torch.contiguous_format)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in pinned memory, which is complete once the current stream has come so far."""
    source = tensor.detach().contiguous()
    target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    return target.copy_(source, non_blocking=True)


def _snapshot(value: object, copies: dict[_TensorKey, torch.Tensor]) -> object:
    """Return a copy of containers and tensors; tensors that share their memory share one copy."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage().data_ptr()
        key = (storage, int(value.storage_offset()), value.size(), value.stride(), value.dtype)
        if key not in copies:
            copies[key] = host_copy(value)
        return copies[key]
    if isinstance(value, dict):
        new = copy.copy(value)  # of the same class, in the same order
        for name, item in value.items():
            new[name] = _snapshot(item, copies)
        return new
    if type(value) is list:
        return [_snapshot(item, copies) for item in value]
    if type(value) is tuple:
        return tuple(_snapshot(item, copies) for item in value)
    return value


class _HashingFile:
    """Passes on what is written to a file, and computes its digest and size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes | memoryview) -> int:
        view = memoryview(content).cast("B")
        self._digest.update(view)
        self._file.write(view)
        self.size_bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _write_file(folder: Path, name: str, content: bytes | _Pickle | _Tensors) -> FileEntry:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as raw:
        file = _HashingFile(raw)
        if isinstance(content, bytes):
            file.write(content)
        elif isinstance(content, _Tensors):
            _write_safetensors(file, content.tensors)
        else:
            _save(content.content, file)  # type: ignore[arg-type] # it calls `write` and `flush` alone
        raw.flush()
        os.fsync(raw.fileno())
    return FileEntry(path=name, size_bytes=file.size_bytes, sha256=file.hexdigest())


def _write_safetensors(file: _HashingFile, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors in the format of safetensors: length of the header, header in JSON, values without gaps."""
    # Wide types first, as the library does, so that every tensor begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    parts = [(name, tensors[name].dtype, tensors[name].shape) for name in names]
    file.write(safetensors_header(parts))
    for name in names:
        values = tensors[name].reshape(-1)
        if values.numel():
            file.write(values.view(torch.uint8).numpy().data)
