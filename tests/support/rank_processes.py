"""Ranks of a gang as child processes of a server that has the libraries imported: a gang starts in a second.

The server is forked for each rank, so that its imports are paid once for all gangs of a test session.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

from support.ports import free_port

TESTS = Path(__file__).parents[1]
IMPORTS = "support.rank_imports"
"""The module whose imports the server has."""
LONGEST_SECONDS = 240.0
PATIENCE_SECONDS = 1.0
"""How long the peers of a dead rank may take to say why they end."""


def run_ranks(program: Callable[..., int], *arguments: Any, ranks: int) -> list[int]:
    """Start all ranks and wait for them; when one dies, its peers are killed, as the agent does.

    Args:
        program: called in each rank as `program(rank, world_size, *arguments)`; returns the exit code.
        arguments: what the program gets besides; pickled.
        ranks: how many.

    Returns:
        The exit codes by rank, negative for signals.
    """
    context = _start_server()
    port = free_port()
    processes: list[Any] = [
        context.Process(target=_enter, args=(program, rank, ranks, port, arguments)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LONGEST_SECONDS
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.02)
    return [process.exitcode for process in processes]


def _start_server() -> ForkServerContext:
    """Start the server where it does not run; it takes its path from the environment, not from this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([IMPORTS])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *([path] if path else [])])
    try:
        ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path
    return context


def _enter(
    program: Callable[..., int], rank: int, world_size: int, port: int, arguments: tuple[Any, ...]
) -> None:
    """Run the program as torch's launcher would, and end the process as the worker does."""
    code = 1
    try:
        # The server passes over what it cannot import, in silence: the tests would still pass, slowly.
        assert IMPORTS in sys.modules, f"the server of the ranks did not import {IMPORTS}"
        gc.freeze()  # a round of the garbage collector over all imports takes as long as three steps
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        _refuse_pickles()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        code = program(rank, world_size, *arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _refuse_pickles() -> None:
    """Make a rank fail at every collective that unpickles what its peers send, in our code and in the libraries'."""
    import torch.distributed as dist

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a rank would unpickle what a peer sent")

    names = [name for name in dir(dist) if "object" in name]
    assert "broadcast_object_list" in names
    for name in names:
        setattr(dist, name, refuse)
