"""Gives DeepSpeed and transformers the listed files of a checkpoint, and no others, to resume from.

Both open what they find by name and pattern in a folder, and DeepSpeed opens its pickles without any restriction. They
get a private folder in the pod's scratch, which the writers of the work volume cannot reach: copies of the small files
that are text, and an empty file in the place of every pickle. `torch.load` is replaced while they load: it maps such a
place to the listed file of the work volume, checks its content, and unpickles it with torch's restricted unpickler and
the few classes that these states consist of. So even a pickle with a valid signature executes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import torch
from torch import _weights_only_unpickler

from dapt_contract.checkpoint import FileEntry
from dapt_contract.sentences import shortened
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.checkpoints.listed_files import ChangedFileError, open_listed
from dapt_trainer.errors import InfrastructureError, InputError, StageEnded

MapLocation: TypeAlias = str | torch.device | None
_PICKLES = (".pt", ".pth")
_NOT_OF_CONTENT = (OSError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""What fails whatever a file holds. torch's readers raise any other class for a file that is no state: one that they do
not know, a broken archive, sizes that do not fit their numbers."""
_CONTENT_ERRORS = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError)
"""What libraries raise at entries that are missing, of another kind or number."""
_WORDS_OF_CONTENT = (
    "size",
    "shape",
    "state_dict",
    "state dict",
    "elements",
    "dtype",
    "dimension",
    "rng state",
)
_WORDS_OF_LINKS = ("nccl", "gloo", "cuda error", "connection", "timed out", "memory")
_MAX_STEPS = 2**40
_WEIGHTS = ".safetensors"
"""Of the candidate, not of the state: a resume does not read them."""


class ResumeFiles:
    """Holds a private folder for one checkpoint, and loads from it what the checkpoint lists.

    Args:
        source: folder with the files.
        entries: what its manifest lists; other files are never opened.
        view: private folder that is created, in the place of an older one.

    Raises:
        InfrastructureError: a file is not the one that is listed.
    """

    def __init__(self, source: Path, entries: Iterable[FileEntry], view: Path) -> None:
        self._source = source
        self._entries = {entry.path: entry for entry in entries}
        self.folder = Path(os.path.abspath(view))
        """Where the libraries read the checkpoint."""
        remove_folder(self.folder)
        self.folder.mkdir(parents=True)
        for name in self._entries:
            place = self.folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(_PICKLES):
                place.touch()
            elif not name.endswith(_WEIGHTS):
                self.copy(name, place)

    def copy(self, name: str, target: Path) -> FileEntry:
        """Copy a listed file and return its entry, whose size and digest are the copy's too.

        Raises:
            InfrastructureError: it is not the one that is listed, or none is.
            OSError: the disk is full.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise self._error(f"it lists no file {name}")
        try:
            with open_listed(self._source, entry) as content:
                if isinstance(content, str):
                    shutil.copyfile(content, target)
                else:
                    target.write_bytes(content.getvalue())
        except ChangedFileError as error:
            raise self._error(str(error)) from error
        return entry

    @contextlib.contextmanager
    def loading(
        self, own_output: Path | None = None, mend: Callable[[object], object] = lambda content: content
    ) -> Iterator[None]:
        """Replace `torch.load` within the block: it opens the listed files, restricted, and refuses all others.

        A state of the right types may still not fit: what the libraries raise at it then is one sentence too.

        Args:
            own_output: folder that the block itself writes to and reads back, also restricted.
            mend: adds to what was loaded what the checkpoint leaves out.

        Raises:
            InputError: a state is none, or does not fit the model; a retry finds the same.
            InfrastructureError: a file is not the one that is listed.
        """
        original = torch.load
        output = None if own_output is None else Path(os.path.abspath(own_output))
        has_loaded = False

        def unpickled(content: BytesIO | str, map_location: MapLocation, name: str) -> object:
            try:
                with torch.serialization.safe_globals(_classes()), _without_sizes():
                    state = original(content, map_location=map_location, weights_only=True)
                _check_counters(state)
                return state
            except _NOT_OF_CONTENT:
                raise
            except Exception as error:
                raise InputError(
                    f"{self._source}: {name} holds what no checkpoint of dapt has, so it is not read: "
                    f"{_first_sentence(error)}; remove this checkpoint, and training continues from an older one"
                ) from error

        # As the libraries call it; what they say of the unpickler is not asked.
        def load(f: object, map_location: MapLocation = None, **_: object) -> object:
            nonlocal has_loaded
            has_loaded = True
            if not isinstance(f, str | os.PathLike):
                raise self._error("something was to be loaded that is no file of the checkpoint")
            path = Path(os.path.abspath(f))
            if output is not None and path.is_relative_to(output):
                return unpickled(os.fspath(path), map_location, path.name)
            if not path.is_relative_to(self.folder):
                raise self._error(f"{path} was to be loaded, which is no file of the checkpoint")
            name = path.relative_to(self.folder).as_posix()
            entry = self._entries.get(name)
            if entry is None:
                raise self._error(f"{name} was to be loaded, which the manifest does not list")
            try:
                with open_listed(self._source, entry) as content:
                    return mend(unpickled(content, map_location, name))
            except ChangedFileError as error:
                raise self._error(str(error)) from error

        torch.load = load  # type: ignore[assignment] # the libraries know no other way in
        try:
            yield
        except (StageEnded, *_NOT_OF_CONTENT):
            raise
        except Exception as error:
            if not (has_loaded and _is_of_content(error)):
                raise
            raise InputError(
                f"{self._source}: its states have the types of a checkpoint, and do not fit this training: "
                f"{_brief(error)}; remove this checkpoint, and training continues from an older one"
            ) from error
        finally:
            torch.load = original

    def remove(self) -> None:
        """Remove the private folder."""
        remove_folder(self.folder)

    def _error(self, problem: str) -> InfrastructureError:
        return InfrastructureError(
            f"{self._source}: {problem}; the checkpoint is not used, and the next run continues from an older one"
        )


@contextlib.contextmanager
def _without_sizes() -> Iterator[None]:
    """Take from torch's unpickler what makes bytes of any number that a file names; no state has any of it."""
    allowed: dict[str, object] = _weights_only_unpickler._get_allowed_globals()
    taken = {name: allowed.pop(name) for name, found in list(allowed.items()) if found is bytearray}
    try:
        yield
    finally:
        allowed.update(taken)


def log_entries(content: bytes, checkpoint: Path) -> list[dict[str, object]]:
    """Return the log in the text of a trainer's state.

    Raises:
        InputError: it has none; the signature says no more than who wrote it.
    """
    try:
        state = json.loads(content)
    except (ValueError, RecursionError):
        state = None
    log = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        raise InputError(
            f"{checkpoint}: resume/trainer_state.json has no list of readings in log_history; remove this checkpoint, "
            "and training continues from an older one"
        )
    return log


def _check_counters(state: object) -> None:
    """Refuse a state whose counters of steps are no counts: the first step would take roots or powers of them.

    Raises:
        ValueError: one of them is below 0, not a number or without end.
    """
    found, waiting = set(), [state]
    while waiting:
        part = waiting.pop()
        if id(part) in found or not isinstance(part, dict | list | tuple):
            continue
        found.add(id(part))
        waiting.extend(part.values() if isinstance(part, dict) else part)
        step = part.get("step") if isinstance(part, dict) else None
        if isinstance(step, torch.Tensor) and step.numel() == 1:
            step = step.item()
        if isinstance(step, int | float) and not 0 <= step < _MAX_STEPS:
            raise ValueError(f"Unsupported step {step}")


def _is_of_content(error: Exception) -> bool:
    """Return whether a library raised because of what it has loaded: RuntimeErrors are also of links and devices."""
    if isinstance(error, RuntimeError):
        text = str(error).lower()
        is_of_size = any(word in text for word in _WORDS_OF_CONTENT)
        return is_of_size and not any(word in text for word in _WORDS_OF_LINKS)
    # DeepSpeed's own exceptions have no base, and are about what a checkpoint holds.
    return isinstance(error, _CONTENT_ERRORS) or type(error).__module__.startswith("deepspeed.")


def _brief(error: Exception) -> str:
    """Return the kind of an error, and what it says on one line."""
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()), 200)


def _classes() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Return what the states of DeepSpeed's optimizers consist of, besides what torch's unpickler knows."""
    # Imported here: after join_ranks, which tells DeepSpeed which accelerator to choose.
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def _first_sentence(error: Exception) -> str:
    """Return what torch says of a refused pickle, without its advice to read it unrestricted."""
    lines = [line.strip() for line in str(error).splitlines()]
    found = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), "")
    return shortened(found or type(error).__name__, 160)
