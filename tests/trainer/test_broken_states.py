"""Tests that a listed state which is no state of torch ends in a sentence, whatever torch raises at it."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dapt_contract.checkpoint import FileEntry
from dapt_trainer.checkpoints.resume_files import ResumeFiles
from dapt_trainer.errors import InputError

pytestmark = pytest.mark.torch
NAME = "resume/state.pt"


def state() -> bytes:
    file = io.BytesIO()
    torch.save({"module": torch.zeros(4)}, file)
    return file.getvalue()


def repacked(change: Callable[[str, bytes], bytes | None]) -> bytes:
    """The archive of a state with other contents; None leaves a file out."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(state())) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return file.getvalue()


def with_pickle(change: Callable[[bytes], bytes]) -> bytes:
    return repacked(lambda name, content: change(content) if name.endswith("data.pkl") else content)


def calling(module: str, name: str, *arguments: object) -> bytes:
    call = f"c{module}\n{name}\n".encode() + pickle.dumps(arguments, 2)[2:-1] + b"R."
    return with_pickle(lambda _: b"\x80\x02" + call)


BROKEN: dict[str, Callable[[], bytes]] = {
    "cut": lambda: state()[:-200],
    "no archive": lambda: b"PK\x03\x04" + bytes(100),
    "no numbers": lambda: repacked(lambda name, content: None if name.endswith("data/0") else content),
    "numbers too short": lambda: repacked(lambda name, content: content[:3] if "data/0" in name else content),
    "no pickle": lambda: repacked(lambda name, content: None if name.endswith("data.pkl") else content),
    "version to come": lambda: repacked(lambda name, content: b"999\n" if "version" in name else content),
    "size beyond its numbers": lambda: with_pickle(lambda content: content.replace(b"K\x04", b"K\x7f")),
    "place before its numbers": lambda: with_pickle(
        lambda content: content.replace(b"QK\x00", b"QJ\xff\xff\xff\xff")
    ),
    "numbers of another file": lambda: with_pickle(
        lambda content: content.replace(b"X\x01\x00\x00\x000", b"X\x06\x00\x00\x00../../")
    ),
    "unknown device": lambda: calling("torch", "device", "evil:99"),
    "absurd size": lambda: calling("builtins", "bytearray", 10**30),
    "size of the memory": lambda: calling("builtins", "bytearray", 10**12),
    "size that the memory has": lambda: calling("__builtin__", "bytearray", 1),
    "absurd storage": lambda: calling("torch", "FloatStorage", 10**15),
    "odd reference": lambda: with_pickle(lambda _: b"\x80\x02K\x01Q."),
}


def load(folder: Path, content: bytes) -> None:
    path = folder / "checkpoint" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    entry = FileEntry(path=NAME, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    files = ResumeFiles(folder / "checkpoint", [entry], folder / "view")
    with files.loading():
        torch.load(files.folder / NAME, map_location="cpu", weights_only=False)


@pytest.mark.parametrize("name", BROKEN)
def test_state_that_is_none_is_bad_input_in_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, BROKEN[name]())
    assert f"{NAME} holds what no checkpoint of dapt has, so it is not read: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lack_of_memory_is_no_fault_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_little(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    monkeypatch.setattr(torch, "load", too_little)
    with pytest.raises(torch.OutOfMemoryError):
        load(tmp_path, state())
