"""The built-in profile follows the machine: its GPUs, else processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.cli.inputs import machine


def adaptation(nodes: int = 1, per_node: int | None = None) -> DomainAdaptation:
    source = {"source": "file:///x.jsonl"}
    resources: dict[str, int] = {"nodes": nodes} | ({} if per_node is None else {"gpusPerNode": per_node})
    return DomainAdaptation.model_validate(
        {
            "apiVersion": "dapt.dev/v1alpha1",
            "kind": "DomainAdaptation",
            "metadata": {"name": "x"},
            "spec": {
                "model": {"source": "file:///m"},
                "corpus": {"domain": [source], "general": [source]},
                "output": {"destination": "file:///o"},
                "resources": resources,
            },
        }
    )


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_taken_when_there_are_any() -> None:
    accelerator = machine.built_in_profile(adaptation()).spec.accelerator
    assert (accelerator.kind, accelerator.per_node, accelerator.memory_gib) == ("gpu", 2, 40.0)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,1", 2)])
def test_hidden_gpus_are_not_taken(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(machine.gpus()) == count


def test_a_program_that_fails_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpus() == []


def test_built_in_profile_without_gpus_follows_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    accelerator = machine.built_in_profile(adaptation(nodes=2, per_node=3)).spec.accelerator
    assert (accelerator.kind, accelerator.per_node) == ("cpu", 3)
    shared = machine.built_in_profile(adaptation(nodes=1, per_node=3)).spec.accelerator
    assert shared.memory_gib == pytest.approx(2 * accelerator.memory_gib, abs=0.2)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert machine.built_in_profile(adaptation()).spec.accelerator.per_node == machine.MAX_PROCESSES
