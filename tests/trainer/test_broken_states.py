"""Tests that a listed state which is no state of torch ends in a sentence, whatever torch raises at it."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dapt_contract.checkpoint import FileEntry
from dapt_trainer.checkpoints.resume_files import ResumeFiles, log_entries
from dapt_trainer.errors import InfrastructureError, InputError

pytestmark = pytest.mark.torch
NAME = "resume/state.pt"
Change = Callable[[dict[Any, Any]], object]


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


def load(folder: Path, content: bytes, use: Callable[[Any], object] = bool) -> None:
    path = folder / "checkpoint" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    entry = FileEntry(path=NAME, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    files = ResumeFiles(folder / "checkpoint", [entry], folder / "view")
    with files.loading():
        use(torch.load(files.folder / NAME, map_location="cpu", weights_only=False))


@pytest.mark.parametrize("name", BROKEN)
def test_state_that_is_none_is_bad_input_in_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, BROKEN[name]())
    assert f"{NAME} holds what no checkpoint of dapt has, so it is not read: " in str(caught.value)
    assert "\n" not in str(caught.value)


def of_group(**changes: object) -> Change:
    return lambda state: state["param_groups"][0].update(changes)


def of_weight(**changes: object) -> Change:
    return lambda state: state["state"].update({0: state["state"][0] | changes})


def lacking(*keys: Any) -> Change:
    def remove(state: dict[Any, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return remove


UNFIT: dict[str, Change] = {
    "no groups": lacking("param_groups"),
    "no state": lacking("state"),
    "a group too few": lambda state: state["param_groups"].clear(),
    "a group too many": lambda state: state["param_groups"].append(state["param_groups"][0]),
    "groups that are a number": lambda state: state.update(param_groups=3),
    "a group that is a text": lambda state: state.update(param_groups=["group"]),
    "a group without weights": lacking("param_groups", 0, "params"),
    "weights too few": of_group(params=[]),
    "weights too many": of_group(params=[0, 1, 2, 3]),
    "weights that are a number": of_group(params=-1),
    "averages of another size": of_weight(exp_avg=torch.zeros(7)),
    "averages of another number of dimensions": of_weight(exp_avg_sq=torch.zeros(3, 5, 2)),
    "averages that are a text": of_weight(exp_avg="much"),
    "no averages": lacking("state", 0, "exp_avg"),
    "a counter that is a text": of_weight(step="four"),
    "a state that is a list": lambda state: state.update(state=[1, 2]),
    "a weight's state that is a number": lambda state: state["state"].update({0: 4}),
    "betas that are one": of_group(betas=0.9),
    "a rate that is a list": of_group(lr=[1.0]),
    "a count that is a list": of_group(weight_decay=[[]]),
}


def one_step_from(folder: Path, change: Change) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], foreach=False)
    weight.sum().backward()
    optimizer.step()
    states = optimizer.state_dict()
    change(states)
    stored = io.BytesIO()
    torch.save(states, stored)

    def use(states: Any) -> None:
        optimizer.load_state_dict(states)
        optimizer.step()  # as libraries touch what they have loaded

    load(folder, stored.getvalue(), use)


@pytest.mark.parametrize("name", UNFIT)
def test_state_that_does_not_fit_is_bad_input_in_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        one_step_from(tmp_path, UNFIT[name])
    assert "do not fit this training" in str(caught.value)
    assert str(caught.value).endswith("training continues from an older one")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("step", [float("nan"), float("inf"), -4.0, -1, 1e30, 10**30])
def test_counter_of_steps_that_is_no_count_is_bad_input_in_one_sentence(tmp_path: Path, step: float) -> None:
    for number, value in enumerate((step, torch.tensor(float(step)))):
        with pytest.raises(InputError, match=r"is not read: Unsupported step [^ ]+; remove this checkpoint"):
            one_step_from(tmp_path / str(number), of_weight(step=value))


def test_list_that_holds_itself_is_looked_through_once(tmp_path: Path) -> None:
    def in_itself(state: dict[Any, Any]) -> None:
        state["param_groups"].append(state["param_groups"])

    with pytest.raises(InputError, match="do not fit this training"):
        one_step_from(tmp_path, in_itself)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo] Connection closed by peer, size 4"),
        RuntimeError("CUDA error: device-side assert triggered"),
        OSError("No space left on device"),
        MemoryError("none left"),
        InfrastructureError("lost"),
    ],
    ids=repr,
)
def test_what_fails_for_another_reason_is_no_fault_of_the_state(tmp_path: Path, error: Exception) -> None:
    def fail(_: object) -> None:
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        load(tmp_path, state(), fail)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"log_history": 3}', b'{"log_history": ["a"]}', b"[" * 10**5, b"9" * 5000, b"\xff"],
)
def test_log_that_is_none_is_bad_input_in_one_sentence(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(InputError, match="has no list of readings in log_history"):
        log_entries(text, tmp_path)


def test_lack_of_memory_is_no_fault_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_little(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    monkeypatch.setattr(torch, "load", too_little)
    with pytest.raises(torch.OutOfMemoryError):
        load(tmp_path, state())
