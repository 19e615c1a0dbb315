"""Compiles a model's decoder blocks for training, each kind of block once.

All blocks of a model run the same code on tensors of the same shapes, so what is compiled for the first one serves all
(regional compilation): the time does not grow with the number of layers. Shapes are static, as packed rows are. Outside
training, where every batch has another length, blocks run as they are.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from dapt_contract.pod.environment import COMPILE
from dapt_contract.sentences import shortened
from dapt_contract.stages.common import DistributionConfig
from dapt_trainer.errors import InputError

logger = logging.getLogger(__name__)
INDUCTOR: Final = "inductor"
"""torch's compiler: Triton's kernels on a GPU, C++ on a CPU."""
_COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("cc", "gcc", "clang")}
"""Programs of which one must be there: Triton builds the functions that start its kernels."""
_RECOMPILATIONS = 64
"""Versions that torch keeps of a block before it gives up: a model may have blocks of several kinds, and attention sees
borders and lengths of a few sizes."""


@dataclass(frozen=True)
class BlockCompilation:
    """Holds whether blocks are compiled, and why."""

    is_used: bool
    reason: str

    @property
    def text(self) -> str:
        """Return the choice with its reason, for log and report."""
        return f"decoder blocks {'compiled' if self.is_used else 'not compiled'}: {self.reason}"


def choose_compilation(device: torch.device, distribution: DistributionConfig) -> BlockCompilation:
    """Return whether blocks are compiled: on a GPU with a compiler, unless TRAINER_COMPILE says otherwise.

    Args:
        device: where the model trains.
        distribution: ZeRO stage, offload and shared sequences move data within a block, which a compiler cannot see.

    Raises:
        InputError: TRAINER_COMPILE is neither `on` nor `off`.
    """
    wanted = os.environ.get(COMPILE, "")
    if wanted not in ("", "on", "off"):
        raise InputError(f"{COMPILE} is {wanted!r}, expected on or off; leave it out for the default")
    if wanted == "off":
        return BlockCompilation(False, f"{COMPILE} is off")
    if device.type == "cpu" and not wanted:
        return BlockCompilation(False, "on the CPU it takes longer than it gains")
    if distribution.zero_stage == 3 or distribution.offload == "all":
        return BlockCompilation(False, "ZeRO 3 gathers weights within a block")
    if distribution.sequence_parallel > 1:
        return BlockCompilation(False, "ranks exchange parts of a sequence within a block")
    if missing := _missing_compiler(device):
        return BlockCompilation(False, f"{missing} is not installed")
    return BlockCompilation(True, f"{COMPILE} is on" if wanted else "once for each kind of block")


def _missing_compiler(device: torch.device) -> str:
    """Return what the compiler needs and this machine has not; empty where nothing is missing."""
    names = _COMPILERS.get(device.type, ())
    variable = "CXX" if device.type == "cpu" else "CC"
    if not (os.environ.get(variable) or any(shutil.which(name) for name in names)):
        return f"a compiler ({', '.join(names)})"
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        return "triton"
    return ""


def compile_blocks(model: torch.nn.Module, *, backend: str | Callable[..., object] = INDUCTOR) -> int:
    """Make the decoder blocks of a model compile themselves at their first call; return how many there are.

    Names, weights and hooks stay as they are. A block that cannot be compiled runs uncompiled, and so do all others.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        return 0
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _RECOMPILATIONS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * _RECOMPILATIONS)
    group = _BlockGroup()
    for block in blocks:
        plain = block._call_impl
        compiled = torch.compile(plain, backend=backend, dynamic=False)
        # What `Module.compile` sets; pickling and copying leave it out.
        block._compiled_call_impl = group.call_of(block, plain, compiled)
    return len(blocks)


def repeated_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules of the outermost lists whose members are all of one class: a decoder's layers."""
    found: list[torch.nn.Module] = []
    for child in model.children():
        if (
            isinstance(child, torch.nn.ModuleList)
            and len(child) > 1
            and len({type(member) for member in child}) == 1
        ):
            found += list(child)
        else:
            found += repeated_blocks(child)
    return found


class _BlockGroup:
    """Calls blocks compiled until the compiler fails on one of them, then all as they are."""

    def __init__(self) -> None:
        self._has_failed = False

    def call_of(
        self, block: torch.nn.Module, plain: Callable[..., object], compiled: Callable[..., object]
    ) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if self._has_failed or not block.training:
                return plain(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                # It is raised before anything of the block has run.
                self._has_failed = True
                # What follows the first empty line is advice for developers of torch.
                reason = " ".join(str(error).partition("\n\n")[0].split())
                logger.warning(
                    "decoder blocks run uncompiled, since the compiler failed: %s", shortened(reason, 300)
                )
                return plain(*args, **kwargs)

        return call
