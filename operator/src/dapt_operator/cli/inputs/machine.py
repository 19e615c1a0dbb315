"""Reads this machine's GPUs and memory for the built-in profile `local`, without torch: from nvidia-smi and psutil."""

from __future__ import annotations

import os
import shutil
import subprocess

from dapt_operator.api.v1alpha1.profile import AdaptationProfile, local_profile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation

MAX_PROCESSES = 4
"""Processes of a CPU run when the manifest does not say: more share the same memory bandwidth for little gain."""


def gpus() -> list[float]:
    """Return the memory of each usable GPU in GiB; empty without GPUs, or when CUDA_VISIBLE_DEVICES hides them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        memory = [float(line) / 1024 for line in answer.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return (
        memory
        if visible is None
        else memory[: len([device for device in visible.split(",") if device.strip()])]
    )


def built_in_profile(adaptation: DomainAdaptation) -> AdaptationProfile:
    """Return the profile `local`: this machine's GPUs, else as many CPU processes as the manifest asks for."""
    memory = gpus()
    if memory:
        return local_profile(len(memory), min(memory), "gpu")
    import psutil

    resources = adaptation.spec.resources
    processes = resources.gpus_per_node or min(MAX_PROCESSES, os.cpu_count() or 1)
    total_gib = psutil.virtual_memory().total / 2**30
    return local_profile(processes, round(total_gib / (processes * resources.nodes), 1), "cpu")
