"""What this machine offers, for the built-in profile `local`. No torch: nvidia-smi and the operating system know."""

from __future__ import annotations

import os
import shutil
import subprocess

from dapt_operator.api.v1alpha1.profile import AdaptationProfile, local_profile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation

MAX_PROCESSES = 4
"""Processes of a CPU run when the manifest does not say: more share the same memory bandwidth for little gain."""


def gpus() -> list[float]:
    """Memory of each usable GPU in GiB; empty without any, or when CUDA_VISIBLE_DEVICES hides them."""
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
    return memory if visible is None else memory[: len([one for one in visible.split(",") if one.strip()])]


def built_in_profile(adaptation: DomainAdaptation) -> AdaptationProfile:
    """The profile `local`: the GPUs when there are any, else as many CPU processes as the manifest asks for."""
    memory = gpus()
    if memory:
        return local_profile(len(memory), min(memory), "gpu")
    import psutil

    resources = adaptation.spec.resources
    processes = resources.gpus_per_node or min(MAX_PROCESSES, os.cpu_count() or 1)
    total_gib = psutil.virtual_memory().total / 2**30
    return local_profile(processes, round(total_gib / (processes * resources.nodes), 1), "cpu")
