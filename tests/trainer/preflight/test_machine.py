"""Tests what a rank reads of its machine before the stage loads anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_trainer.errors import InfrastructureError
from dapt_trainer.preflight.machine import reason_for_sockets, shared_memory_bytes
from dapt_trainer.preflight.volume import VolumeSpeed, measure_volume

LIBC = "libc.so.6"
"""A library that every machine of the tests has, in the place of libibverbs."""


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Folders as the kernel shows them of a machine with two RDMA devices, which the container may use."""
    for name in ("mlx5_0", "mlx5_1"):
        (tmp_path / "class" / name).mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "uverbs0").touch()
    return tmp_path


def reason(folder: Path, environment: dict[str, str] | None = None, library: str = LIBC) -> str:
    return reason_for_sockets(
        environment or {}, devices=folder / "class", files=folder / "dev", library=library
    )


def test_machine_without_rdma_devices_gives_no_reason(tmp_path: Path) -> None:
    assert reason(tmp_path, library="libnone.so") == ""


def test_usable_rdma_devices_give_no_reason(devices: Path) -> None:
    assert reason(devices) == ""
    assert reason(devices, {"NCCL_IB_DISABLE": "0"}) == ""
    assert reason(devices, {"NCCL_NET": "AWS Libfabric"}, library="libnone.so") == ""


@pytest.mark.parametrize(
    ("environment", "library", "rest"),
    [
        ({}, "libnone.so", "the image has no libnone.so: use dapt's image, or install rdma-core in yours"),
        (
            {"NCCL_IB_DISABLE": "1"},
            LIBC,
            "NCCL_IB_DISABLE is 1: remove it from the pod template",
        ),
        ({"NCCL_NET": "Socket"}, LIBC, "NCCL_NET is Socket: remove it from the pod template"),
    ],
)
def test_reason_for_sockets_says_what_to_change(
    devices: Path, environment: dict[str, str], library: str, rest: str
) -> None:
    assert reason(devices, environment, library) == f"it has RDMA devices (mlx5_0, mlx5_1), and {rest}"


def test_pod_without_device_files_is_told_to_request_them(devices: Path) -> None:
    (devices / "dev" / "uverbs0").unlink()
    assert reason(devices) == (
        "it has RDMA devices (mlx5_0, mlx5_1), and the pod was given none: request the device plugin's resource in the"
        " pod template"
    )


def test_shared_memory_is_the_size_of_its_file_system(tmp_path: Path) -> None:
    assert shared_memory_bytes(tmp_path / "missing") is None
    size = shared_memory_bytes(tmp_path)
    assert size is not None
    assert size > 2**20


def test_volume_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / ".preflight-0").write_text("of a run that was killed")
    speed = measure_volume(tmp_path, most_bytes=1 << 16, most_seconds=5.0, name=".preflight-0")
    assert speed.write_bytes_per_second is not None
    assert speed.read_bytes_per_second is not None
    assert min(speed.write_bytes_per_second, speed.read_bytes_per_second) > 0
    assert list(tmp_path.iterdir()) == []


def test_volume_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".preflight-0").symlink_to(tmp_path / "precious")
    measure_volume(tmp_path, most_bytes=1024, most_seconds=5.0, name=".preflight-0")
    assert (tmp_path / "precious").read_text() == "kept"


def test_full_volume_is_not_measured(tmp_path: Path) -> None:
    assert measure_volume(tmp_path, most_bytes=1 << 60, most_seconds=1.0, name="x") == VolumeSpeed()


def test_slow_volume_ends_the_measurement_by_the_clock(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    speed = measure_volume(
        tmp_path, most_bytes=1 << 20, most_seconds=3.0, name="x", clock=lambda: float(next(ticks))
    )
    assert (
        speed.write_bytes_per_second is not None
    )  # one chunk and no more: each look at the clock costs a second


@pytest.mark.torch
def test_node_with_too_few_gpus_is_refused_before_it_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from dapt_trainer.distributed import choose_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    for name, value in {"DAPT_ACCELERATOR": "gpu", "PET_NPROC_PER_NODE": "8", "PET_NODE_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAPT_NODE_NAME", "gpu-3")
    with pytest.raises(InfrastructureError) as raised:
        choose_device(7)
    assert str(raised.value) == (
        "preflight: node 3 (gpu-3) shows 7 of the 8 GPUs that its ranks need: look at its GPUs and their driver "
        "(nvidia-smi, dmesg), or cordon the node"
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert choose_device(7) == torch.device("cuda", 7)
    # A driver that cannot be loaded counts as no device, and the ranks never fall back to the CPU on their own.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InfrastructureError, match="shows 0 of the 8 GPUs"):
        choose_device(0)
