"""Tests files that are staged in memory and hashed while they are written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch


def staged_files(folder: Path) -> Any:
    from dapt_trainer.staged_files import StagedFiles

    return StagedFiles(folder / "scratch")


def test_safetensors_file_is_read_by_the_library(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "matrix": torch.randn(5, 3),
        "half": torch.randn(7, dtype=torch.float32).to(torch.bfloat16),
        "scalar": torch.tensor(4, dtype=torch.int64),
        "empty": torch.empty(0, 2),
    }
    staged = staged_files(tmp_path)
    staged.add_tensors("weights.safetensors", tensors)
    staged.write(tmp_path)
    found = load_file(tmp_path / "weights.safetensors")
    assert sorted(found) == sorted(tensors)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )


def test_digests_and_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    import torch

    staged = staged_files(tmp_path)
    staged.add_tensors("a.safetensors", {"x": torch.ones(1000)})
    with staged.capturing("state") as folder:
        torch.save({"moments": torch.ones(1000)}, folder / "optimizer.pt")
        (folder / "curve.json").write_text("{}")
    entries = staged.write(tmp_path / "out")
    assert [entry.path for entry in entries] == ["a.safetensors", "state/curve.json", "state/optimizer.pt"]
    for entry in entries:
        content = (tmp_path / "out" / entry.path).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_state_is_that_of_the_moment_when_it_was_staged(tmp_path: Path) -> None:
    import torch

    moments, groups = torch.zeros(4), [{"lr": 0.1}]
    staged = staged_files(tmp_path)
    with staged.capturing() as folder:
        torch.save({"moments": moments, "groups": groups}, folder / "optimizer.pt")
    moments.fill_(7.0)
    groups[0]["lr"] = 0.2
    staged.write(tmp_path / "out")
    found = torch.load(tmp_path / "out/optimizer.pt", weights_only=True)
    assert found["moments"].tolist() == [0.0] * 4
    assert found["groups"] == [{"lr": 0.1}]


def test_part_of_a_large_tensor_is_copied_alone(tmp_path: Path) -> None:
    import torch

    flat = torch.zeros(100_000)
    staged = staged_files(tmp_path)
    with staged.capturing() as folder:
        torch.save({"first": flat[:10], "again": flat[:10]}, folder / "optimizer.pt")
    assert staged.size_bytes == 40
    (entry,) = staged.write(tmp_path / "out")
    assert entry.size_bytes < 10_000


def test_state_outside_of_the_folder_is_not_taken(tmp_path: Path) -> None:
    import torch

    with pytest.raises(ValueError, match="not in the subpath"), staged_files(tmp_path).capturing():
        torch.save({}, tmp_path / "elsewhere.pt")
    torch.save({}, tmp_path / "elsewhere.pt")
    assert (tmp_path / "elsewhere.pt").is_file()
