"""Runs the commands that a test writes into the destination, separated by commas.

`rank0|rank1` gives each rank its own commands; a single list is for every rank.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time

from dapt_contract.stages.publish import PublishConfig, PublishFacts, PublishReport
from dapt_trainer.context import StageContext
from dapt_trainer.errors import DivergedError, InputError, StageOutOfMemoryError, StopRequested


def run(config: PublishConfig, context: StageContext) -> PublishReport:
    scripts = config.destination.removeprefix("file://").split("|")
    for word in scripts[context.rank if len(scripts) > 1 else 0].split(","):
        _do(word, context)
    return PublishReport(
        facts=PublishFacts(
            destination=config.destination, digest="d" * 64, files=context.world_size, size_bytes=7
        )
    )


class SigtermWhileFormattingError(Exception):
    """Sends SIGTERM while its message is formatted, as when a peer fails at the same moment."""

    def __str__(self) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return "in the middle of it"


def _do(word: str, context: StageContext) -> None:
    name, _, value = word.partition("=")
    if name == "sleep":
        time.sleep(float(value))
    elif name == "step":
        context.progress.update(step=int(value), total_steps=10, loss_nats=2.5, activity="stepping")
    elif name == "polled-sleep":
        end = time.monotonic() + float(value)
        while time.monotonic() < end:
            context.progress.heartbeat()
            if context.progress.stop_requested():
                (context.try_folder / f"saved-{context.rank}").write_text("saved")
                raise StopRequested("stop requested; saved at step 3")
            time.sleep(0.02)
    elif name == "ignore-stop":
        context.progress.stop_requested()
        time.sleep(float(value))
    elif name == "pool":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.map(abs, [1, 2])
            pool.terminate()  # by SIGTERM, which must not look like a stop in the helpers
            pool.join()
    elif name == "modules":
        (context.work / "modules").write_text(" ".join(sys.modules))
    elif name == "input-error" and value:
        raise InputError(value)
    elif name == "input-error":
        raise InputError("corpus.jsonl:3: not JSON", "corpus.jsonl:9: no field 'text'")
    elif name == "diverged":
        raise DivergedError(
            "loss is nan at step 4", facts=PublishFacts(destination="d", digest="x", files=1, size_bytes=1)
        )
    elif name == "out-of-memory":
        raise StageOutOfMemoryError("a batch of 4 does not fit")
    elif name == "memory-error":
        raise MemoryError("no room")
    elif name == "disk-full":
        raise OSError(
            errno.ENOSPC,
            "No space left on device",
            str(context.try_folder / "checkpoint-8.partial" / "w.bin"),
        )
    elif name == "forbidden":
        raise PermissionError(errno.EACCES, "Permission denied", "/mnt/claims/corpora/d.jsonl")
    elif name == "fill":
        with (context.try_folder / "checkpoint-8.partial").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    elif name == "crash":
        raise ZeroDivisionError("division by zero")
    elif name == "crash-during-sigterm":
        raise SigtermWhileFormattingError
    elif name == "kill-self":
        os.kill(os.getpid(), getattr(signal, value))
    elif name == "exit":
        os._exit(int(value))
    elif name == "all-reduce":
        _all_reduce(context)
    elif name == "touch":
        (context.work / value).touch()
    elif name == "wait-for":
        while not (context.work / value).exists():
            context.progress.heartbeat()
            time.sleep(0.02)
    elif name == "environment":
        (context.work / "environment").write_text(
            "\n".join(f"{key}={os.environ[key]}" for key in sorted(os.environ))
        )
    elif name not in ("", "done"):
        raise AssertionError(f"unknown word {word!r}")


def _all_reduce(context: StageContext) -> None:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    value = torch.tensor([float(context.rank + 1)])
    dist.all_reduce(value)
    (context.work / f"sum-{context.rank}").write_text(str(value.item()))
