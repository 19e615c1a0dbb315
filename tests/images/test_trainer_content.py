"""What is in the trainer's image, as far as its Dockerfile and locks say: RDMA, kernels, CUDA, and its size."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "trainer-image" / "Dockerfile").read_text()
INSTALLING = " ".join((ROOT / "docs" / "installing.md").read_text().split())
GB = 10**9
LINUX = {name: str(value) for name, value in default_environment().items()} | {
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}
DRIVERS = {"12": "525", "13": "580"}
"""Major version of CUDA -> the first driver for Linux that runs every minor version of it."""


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    lines = re.findall(r"^([A-Za-z0-9][^\\\n]*?)\s*\\?$", text, flags=re.MULTILINE)
    found = [Requirement(line) for line in lines]
    return {
        item.name: next(iter(item.specifier)).version
        for item in found
        if item.marker is None or item.marker.evaluate(LINUX)
    }


def default_of(argument: str) -> str:
    (value,) = re.findall(rf"^ARG {argument}=(\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return str(value)


def installed_bytes(name: str) -> int:
    """Size of an installed distribution's files, as it lists them itself."""
    return sum(file.size or 0 for file in importlib.metadata.files(name) or ())


def test_image_has_the_libraries_by_which_nccl_uses_rdma() -> None:
    (packages,) = re.findall(r"apt-get install [^&]*", DOCKERFILE.replace("\\\n", " "))
    assert {"libibverbs1", "ibverbs-providers", "librdmacm1", "g++"} <= set(packages.split())


def test_image_has_every_kernel_that_the_code_looks_for() -> None:
    # A wheel of flash-attn would have to be built for each version of torch with nvcc, which the image does not have.
    assert "liger-kernel" in pins("gpu")
    assert "flash-attn" not in pins("gpu")
    assert "triton" in pins("trainer")
    assert "does not have flash-attn" in INSTALLING


def test_gpu_lock_brings_no_other_version_of_what_the_trainer_has() -> None:
    trainer = pins("trainer")
    assert {
        name: version for name, version in pins("gpu").items() if trainer.get(name, version) != version
    } == {}


def test_driver_that_is_written_down_fits_the_cuda_of_the_lock() -> None:
    assert default_of("LOCK") == "requirements/trainer.txt"
    major = pins("trainer")["nvidia-cuda-runtime"].split(".")[0]
    assert (
        default_of("CUDA") == f"{major}.0"
    )  # a later minor version runs on the first driver of its major version
    assert f"{DRIVERS[major]} or later for CUDA {major}" in DOCKERFILE
    assert f"driver {DRIVERS[major]} or later" in INSTALLING
    assert "NVIDIA_REQUIRE_CUDA=cuda>=${CUDA}" in DOCKERFILE
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in DOCKERFILE


def test_argument_of_the_flavour_reaches_the_stage_that_uses_it() -> None:
    build, image = DOCKERFILE.split("FROM ${BASE}")[1:]
    assert "\nARG LOCK\n" in build
    assert "\nARG CUDA\n" in image


def test_size_of_the_image_is_what_the_page_says() -> None:
    found = re.search(r"about (\d+) GB unpacked, (\d+) GB of it NVIDIA's libraries", INSTALLING)
    assert found is not None
    names = pins("trainer")
    missing = [name for name in names if not importlib.metadata.files(name)]
    if missing:
        pytest.skip(f"installed without a list of files: {', '.join(missing)}")
    sizes = {name: installed_bytes(name) for name in names}
    nvidia = sum(size for name, size in sizes.items() if name.startswith(("nvidia-", "cuda-")))
    # The base image and the packages of Debian are about 0.5 GB, most of it the compiler.
    assert sum(sizes.values()) / GB + 0.5 == pytest.approx(float(found[1]), abs=0.7)
    assert nvidia / GB == pytest.approx(float(found[2]), abs=0.5)
