"""Tests resume against whoever can write to the work volume: nothing is executed, and an older checkpoint is used.

Every pickle that is planted here would create the canary's folder if it were opened without a restriction.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dapt_contract.checkpoint import CheckpointManifest, FileEntry
from dapt_contract.signature import ShortKeyError
from dapt_trainer.checkpoints import listed_files
from dapt_trainer.checkpoints.resume_files import ResumeFiles
from dapt_trainer.checkpoints.run_checkpoints import RunCheckpoints
from dapt_trainer.checkpoints.same_training import training_digest
from dapt_trainer.checkpoints.save import list_files, write_manifest
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InfrastructureError, InputError, StageError
from support.toy_training import KEY, make_context, pretrain_config

pytestmark = pytest.mark.torch
LINEAGE = "stages/pretrain-a1"
STATES = "resume/global_step4/mp_rank_00_model_states.pt"
OTHER_KEY = b"a key of somebody else, long enough"
CONFIG = pretrain_config()


class Executed:
    """A pickle that creates a folder where it is opened."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._canary),)


class Evaluated(Executed):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, (f"__import__('os').mkdir({str(self._canary)!r})",)


class Volume:
    """A work volume with the signed checkpoints of steps 2 and 4."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.canary = root / "executed"
        for step in (2, 4):
            folder = self.work / LINEAGE / f"try-1/checkpoint-{step}"
            (folder / f"resume/global_step{step}").mkdir(parents=True)
            torch.save(
                {"module": torch.zeros(4)}, folder / f"resume/global_step{step}/mp_rank_00_model_states.pt"
            )
            torch.save({"last_epoch": step}, folder / "resume/scheduler.pt")
            (folder / "resume/latest").write_text(f"global_step{step}")
            (folder / "resume/trainer_state.json").write_text(json.dumps({"log_history": [{"step": step}]}))
            (folder / "model.safetensors").write_bytes(b"weights")
            self.sign(folder)
        self.folder = folder
        self.manifest = folder.with_suffix(".json")
        self.states = folder / STATES

    def sign(self, folder: Path, files: tuple[FileEntry, ...] | None = None, **changes: Any) -> None:
        """Write the manifest of a folder, with a valid signature unless `key` says otherwise."""
        key = changes.pop("key", KEY)
        step = int(folder.name.rpartition("-")[2])
        values: dict[str, Any] = {
            "folder": folder.relative_to(self.work).as_posix(),
            "candidate": f"a1-s{step}",
            "step": step,
            "tokens": step,
            "world_size": 1,
            "fence": 1,
            "lineage": "pretrain-a1",
            "config_digest": training_digest(CONFIG),
            "weights_digest": "0",
            "files": list_files(folder) if files is None else files,
        }
        manifest = CheckpointManifest(**(values | changes))
        write_manifest(folder.with_suffix(".json"), manifest, key=key, run_key="")

    def sign_also(self, name: str) -> None:
        """Sign the checkpoint of step 4 with one more entry."""
        self.sign(self.folder, (*list_files(self.folder), FileEntry(path=name, size_bytes=1, sha256="0")))

    def plant(self, path: Path, kind: type[Executed] = Executed) -> Path:
        """Write a pickle that would be executed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"module": kind(self.canary)}, path)
        return path

    def edit(self, **changes: Any) -> None:
        """Change fields of the manifest of step 4 without signing it."""
        envelope = json.loads(self.manifest.read_text())
        envelope["body"] |= changes
        self.manifest.write_text(json.dumps(envelope))

    def opened(self) -> RunCheckpoints:
        """What the next run finds."""
        context = make_context(self.work, self.root / "scratch", CONFIG, try_number=2)
        checkpoints = RunCheckpoints(
            CONFIG, context, Ranks(0, 0, 1, torch.device("cpu")), keep_optimizer_states=2
        )
        checkpoints.open()
        return checkpoints


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


def loads_all(files: ResumeFiles) -> list[Any]:
    """Open every pickle as DeepSpeed does: whatever lies in the folder, unrestricted."""
    with files.loading():
        paths = sorted((*files.folder.rglob("*.pt"), *files.folder.rglob("*.pth")))
        return [torch.load(path, map_location="cpu", weights_only=False) for path in paths]


def test_untouched_checkpoint_is_resumed_from(volume: Volume) -> None:
    checkpoints = volume.opened()
    assert checkpoints.skipped == ()
    files = checkpoints.files_to_resume()
    assert files is not None
    assert checkpoints.log_history() == [{"step": 4}]
    assert (files.folder / "resume/latest").read_text() == "global_step4"
    states, scheduler = loads_all(files)
    assert (states["module"].tolist(), scheduler) == ([0.0] * 4, {"last_epoch": 4})
    files.remove()
    assert not files.folder.exists()


def move(path: Path) -> Path:
    """Move something out of the volume's checkpoints and return where it is now."""
    return path.rename(path.parents[5] / f"moved-{path.name}")


def swap_for_link(path: Path) -> None:
    path.symlink_to(move(path))


def replace_by_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def same_size(volume: Volume) -> None:
    content = volume.states.read_bytes()
    evil = volume.plant(volume.root / "evil.pt").read_bytes()
    volume.states.write_bytes((evil + bytes(len(content)))[: len(content)])


def deep(volume: Volume) -> None:
    depth = 100_000
    text = volume.manifest.read_text()
    volume.manifest.write_text(
        text.replace('"body": {', '"body": {"deep": ' + "[" * depth + "]" * depth + ",")
    )


def sparse(volume: Volume) -> None:
    os.truncate(volume.manifest, 65 * 2**20)


def copied(volume: Volume) -> None:
    shutil.copytree(volume.folder, volume.folder.with_name("checkpoint-6"))
    volume.manifest.rename(volume.folder.with_name("checkpoint-6.json"))


def in_folder(volume: Volume, name: str) -> None:
    """The newest checkpoint in a folder that is not a run's, with a pickle for good measure."""
    stray = volume.work / LINEAGE / name
    volume.plant(stray / "checkpoint-9/resume/global_step9/mp_rank_00_model_states.pt")
    shutil.copy(volume.manifest, stray / "checkpoint-9.json")


NOT_LISTED = "which the manifest does not list"
SIGNATURE = "its signature does not match this adaptation's key"
ALTERED = r"was altered \(its SHA-256 differs\)"
SKIPPED: dict[str, tuple[Callable[[Volume], object], str]] = {
    "one more shard": (lambda v: v.plant(v.states.with_name("mp_rank_01_model_states.pt")), NOT_LISTED),
    "one more optimizer state": (
        lambda v: v.plant(v.states.with_name("zero_pp_rank_0_mp_rank_00_optim_states.pt")),
        NOT_LISTED,
    ),
    "one more step": (
        lambda v: v.plant(v.folder / "resume/global_step9/mp_rank_00_model_states.pt"),
        NOT_LISTED,
    ),
    "pickled weights": (lambda v: v.plant(v.folder / "pytorch_model.bin"), NOT_LISTED),
    "a hidden pickle": (lambda v: v.plant(v.states.with_name(".mp_rank.pt")), NOT_LISTED),
    "random states that were not saved": (lambda v: v.plant(v.folder / "resume/rng_state_1.pth"), NOT_LISTED),
    "a program": (lambda v: (v.folder / "resume/zero_to_fp32.py").write_text("import os"), NOT_LISTED),
    "one more link": (
        lambda v: v.states.with_name("mp_rank_01.pt").symlink_to(v.plant(v.root / "e")),
        NOT_LISTED,
    ),
    "one more linked folder": (
        lambda v: (v.folder / "resume/global_step9").symlink_to(v.plant(v.root / "e/e.pt").parent),
        NOT_LISTED,
    ),
    "a pickle of the same size": (same_size, ALTERED),
    "a pickle of another size": (lambda v: v.plant(v.states), r"has \d+ bytes, but \d+ were written"),
    "a link in the place of a file": (lambda v: swap_for_link(v.states), "is not a regular file"),
    "a link to a pickle": (
        lambda v: replace_by_link(v.states, v.plant(v.root / "e")),
        "is not a regular file",
    ),
    "a linked step": (lambda v: swap_for_link(v.states.parent), f"{STATES} is missing"),
    "a linked checkpoint": (lambda v: swap_for_link(v.folder), "checkpoint-4 is missing or no folder"),
    "a pipe in the place of a file": (lambda v: replace_by_pipe(v.states), "is not a regular file"),
    "a folder in the place of a file": (lambda v: replace_by_folder(v.states), f"{STATES} is missing"),
    "a missing file": (lambda v: v.states.unlink(), f"{STATES} is missing"),
    "a changed text": (lambda v: (v.folder / "resume/latest").write_text("global_step9"), ALTERED),
    "no signature": (lambda v: v.edit(signature=""), SIGNATURE),
    "a signature that is not ASCII": (lambda v: v.edit(signature="é" * 64), SIGNATURE),
    "a signature of half a character": (lambda v: v.edit(signature="0" * 63 + "\x00"), SIGNATURE),
    "a signature of another key": (lambda v: v.sign(v.folder, key=OTHER_KEY), SIGNATURE),
    "a changed count": (lambda v: v.edit(tokens=10**300), SIGNATURE),
    "a signature that is a list": (
        lambda v: v.edit(signature=["0"]),
        "signature: Input should be a valid string",
    ),
    "a manifest that is a list": (lambda v: v.manifest.write_text("[]"), "not a valid dapt.checkpoint file"),
    "a body that is a list": (
        lambda v: v.manifest.write_text(v.manifest.read_text().replace('"body": {', '"body": [], "was": {')),
        "body: Input should be an object",
    ),
    "files that are an object": (lambda v: v.edit(files={"path": "a"}), "files: Input should be a valid"),
    "a step that is no number": (lambda v: v.edit(step={"a": 1}), "step: Input should be a valid integer"),
    "a step with too many digits": (
        lambda v: v.manifest.write_text(v.manifest.read_text().replace('"step": 4', f'"step": {"9" * 5000}')),
        "not a valid dapt.checkpoint file",
    ),
    "a deep manifest": (deep, "not a valid dapt.checkpoint file"),
    "a pickle as manifest": (lambda v: v.plant(v.manifest), "not a valid dapt.checkpoint file"),
    "no text": (lambda v: v.manifest.write_bytes(b"\xff\xfe" * 9), "not a valid dapt.checkpoint file"),
    "an empty manifest": (lambda v: v.manifest.write_bytes(b""), "not a valid dapt.checkpoint file"),
    "a manifest of 65 MiB": (sparse, "larger than 67,108,864 bytes"),
    "a linked manifest": (
        lambda v: swap_for_link(v.manifest),
        "not a regular file; expected a dapt.checkpoint",
    ),
    "a pipe as manifest": (lambda v: replace_by_pipe(v.manifest), "not a regular file; expected a dapt.ch"),
    "a folder as manifest": (
        lambda v: replace_by_folder(v.manifest),
        "not a regular file; expected a dapt.ch",
    ),
    "a signed name that leads out": (lambda v: v.sign_also("../evil.pt"), "not the name of a file below"),
    "a signed absolute name": (lambda v: v.sign_also("/etc/hostname"), "not the name of a file below"),
    "a signed name with NUL": (lambda v: v.sign_also("a\0b"), "not the name of a file below"),
    "a signed empty name": (lambda v: v.sign_also(""), "not the name of a file below"),
    "a signed name twice": (lambda v: v.sign_also(STATES), f"it lists {STATES} twice"),
    "a signed absurd size": (
        lambda v: v.sign(
            v.folder,
            tuple(entry.model_copy(update={"size_bytes": 10**30}) for entry in list_files(v.folder)),
        ),
        rf"but {10**30} were written",
    ),
    "a checkpoint of another folder": (copied, "it was written for"),
    "a checkpoint of another attempt": (
        lambda v: v.sign(v.folder, lineage="pretrain-a2"),
        "it was written for",
    ),
    "a checkpoint of another training": (
        lambda v: v.sign(v.folder, config_digest="sha256:0"),
        "it was trained with another configuration",
    ),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_hostile_checkpoint_is_skipped_in_a_sentence_and_the_one_before_it_used(
    volume: Volume, name: str
) -> None:
    plant, reason = SKIPPED[name]
    plant(volume)
    checkpoints = volume.opened()
    (sentence,) = checkpoints.skipped
    assert "\n" not in sentence
    assert re.search(reason, sentence), sentence
    files = checkpoints.files_to_resume()
    assert files is not None
    assert (files.folder / "resume/latest").read_text() == "global_step2"
    assert len(loads_all(files)) == 2
    assert not volume.canary.exists()


@pytest.mark.parametrize("name", ["try-x", "try-", "try-0", "try-²", "try-99999999999999999999", "try-1e3"])
def test_folder_that_is_no_runs_does_not_stop_a_resume(volume: Volume, name: str) -> None:
    in_folder(volume, name)
    checkpoints = volume.opened()
    assert checkpoints.skipped == (
        f"skipped {LINEAGE}/{name}/checkpoint-9.json: {name} is not the folder of a run",
    )
    files = checkpoints.files_to_resume()
    assert files is not None
    assert (files.folder / "resume/latest").read_text() == "global_step4"


def test_folders_thousands_deep_do_not_stop_a_resume(volume: Volume) -> None:
    leaves = []
    for start in (volume.folder / "resume", volume.work / LINEAGE / "try-1/checkpoint-9"):
        start.mkdir(exist_ok=True)
        leaf = start
        for _ in range(1200):
            leaf /= "d"
            leaf.mkdir()
        leaves.append(leaf)
    try:
        assert volume.opened().skipped == ()
    finally:
        # Bottom up, since nothing removes them by recursion.
        for leaf in leaves:
            with contextlib.suppress(OSError):
                os.removedirs(leaf)


def test_leftovers_of_an_interrupted_deletion_are_no_tampering(volume: Volume) -> None:
    older = volume.work / LINEAGE / "try-1/checkpoint-2"
    files = tuple(entry for entry in list_files(older) if not entry.path.startswith("resume/"))
    volume.sign(older, files, has_optimizer=False)
    checkpoints = volume.opened()
    assert checkpoints.skipped == ()
    assert checkpoints.resumed is not None
    assert checkpoints.resumed.manifest.step == 4


def legacy(volume: Volume) -> None:
    with volume.states.open("wb") as file:
        pickle.dump(Executed(volume.canary), file, protocol=2)


def old_format(volume: Volume) -> None:
    torch.save({"module": Executed(volume.canary)}, volume.states, _use_new_zipfile_serialization=False)


def in_tensor_state(volume: Volume) -> None:
    tensor = torch.zeros(2)
    tensor.note = Executed(volume.canary)  # type: ignore[attr-defined]
    torch.save({"module": tensor}, volume.states)


SIGNED: dict[str, Callable[[Volume], object]] = {
    "a call": lambda v: v.plant(v.states),
    "an expression": lambda v: v.plant(v.states, Evaluated),
    "a bare pickle": legacy,
    "torch's old format": old_format,
    "an attribute of a tensor": in_tensor_state,
    "the scheduler": lambda v: v.plant(v.folder / "resume/scheduler.pt"),
    "the random states": lambda v: v.plant(v.folder / "resume/rng_state.pth"),
}


@pytest.mark.parametrize("name", SIGNED)
def test_pickle_with_a_valid_signature_executes_nothing(volume: Volume, name: str) -> None:
    SIGNED[name](volume)
    volume.sign(volume.folder)
    files = volume.opened().files_to_resume()
    assert files is not None
    with pytest.raises(InputError) as caught:
        loads_all(files)
    assert "holds what no checkpoint of dapt has, so it is not read: " in str(caught.value)
    assert str(caught.value).endswith("; remove this checkpoint, and training continues from an older one")
    assert "\n" not in str(caught.value)
    assert not volume.canary.exists()


AFTER_THE_CHECK: dict[str, Callable[[Volume], object]] = {
    "written over": lambda v: v.states.write_bytes(v.plant(v.root / "e").read_bytes()),
    "replaced": lambda v: v.plant(v.root / "e").replace(v.states),
    "replaced by a link": lambda v: replace_by_link(v.states, v.plant(v.root / "e")),
    "replaced by a pipe": lambda v: replace_by_pipe(v.states),
    "its folder linked": lambda v: swap_for_link(v.states.parent),
    "deleted": lambda v: v.states.unlink(),
    "grown": lambda v: v.states.write_bytes(v.states.read_bytes() + b"0"),
}


@pytest.mark.parametrize("name", AFTER_THE_CHECK)
@pytest.mark.parametrize("memory_bytes", [2**20, 0], ids=["small", "large"])
def test_file_that_is_swapped_after_the_check_is_not_used(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, name: str, memory_bytes: int
) -> None:
    monkeypatch.setattr(listed_files, "MEMORY_BYTES", memory_bytes)
    files = volume.opened().files_to_resume()
    assert files is not None
    AFTER_THE_CHECK[name](volume)
    with pytest.raises(InfrastructureError) as caught:
        loads_all(files)
    assert str(caught.value).startswith(f"{volume.folder}: {STATES} ")
    assert not volume.canary.exists()


def test_large_file_that_is_written_to_while_it_is_read_is_not_used(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed_files, "MEMORY_BYTES", 0)
    (entry,) = (entry for entry in list_files(volume.folder) if entry.path == STATES)
    content = volume.states.read_bytes()

    def read_while_it_changes() -> None:
        with listed_files.open_listed(volume.folder, entry) as path:
            assert Path(str(path)).read_bytes() == content
            before = volume.states.stat()
            volume.states.write_bytes(bytes(len(content)))
            os.utime(volume.states, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(listed_files.ChangedFileError, match="was written to while it was read"):
        read_while_it_changes()


@pytest.mark.parametrize("name", ["resume/trainer_state.json", "resume/latest"])
def test_text_that_changes_after_the_check_is_not_used(volume: Volume, name: str) -> None:
    checkpoints = volume.opened()
    (volume.folder / name).write_text("{}")
    with pytest.raises(InfrastructureError, match=f"{name} was altered"):
        checkpoints.files_to_resume()
    if name.endswith(".json"):
        with pytest.raises(InfrastructureError, match=f"{name} was altered"):
            checkpoints.log_history()


def test_only_files_of_the_checkpoint_can_be_loaded(volume: Volume) -> None:
    files = volume.opened().files_to_resume()
    assert files is not None
    added = volume.plant(volume.states.with_name("mp_rank_01_model_states.pt"))
    planted = volume.plant(files.folder / "resume/global_step4/mp_rank_01_model_states.pt")
    for path in (added, planted, volume.plant(volume.root / "e.pt"), files.folder / "../e.pt"):
        with pytest.raises(StageError, match="was to be loaded, which"), files.loading():
            torch.load(path, weights_only=False)
    assert not volume.canary.exists()
    with pytest.raises(InfrastructureError), files.loading(), added.open("rb") as file:
        torch.load(file, weights_only=False)


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 31])
def test_key_that_is_empty_or_short_signs_nothing(volume: Volume, key: bytes) -> None:
    with pytest.raises(ShortKeyError):
        volume.sign(volume.folder, key=key)
