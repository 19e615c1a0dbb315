"""Runs one rank: reads stage.json, runs the program of the stage, writes its report and the rank's outcome.

The agent starts it (`python -m dapt_trainer.worker`), once for every process of the pod. Exit codes are the contract's;
the outcome file in the scratch folder has the rest, and the agent judges over all ranks.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import gc
import importlib
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from dapt_contract.base import Contract
from dapt_contract.layout import WRITTEN
from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.sentences import shortened
from dapt_contract.stage_file import write_report
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.context import PreflightSettings, StageContext
from dapt_trainer.errors import InputError, StageEnded, StopRequested
from dapt_trainer.linux import PARENT_PID, die_with_parent
from dapt_trainer.pod.disk_reserve import Reserve
from dapt_trainer.pod.heartbeat import Heart, stacks_path
from dapt_trainer.pod.log_lines import set_up_log, write_traceback
from dapt_trainer.pod.outcome import RankOutcome, write_outcome
from dapt_trainer.pod.progress import Board, serve
from dapt_trainer.pod.settings import PodSettings
from dapt_trainer.pod.stage_input import read_stage
from dapt_trainer.stages import STAGE_MODULES

_MAX_ERROR_CHARACTERS = 400
_MEMORY_PHRASES = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
"""Phrases of torch, CUDA and C++ for a failed allocation, which has no class of its own on the CPU."""
_NETWORK_PHRASES = (
    "gloo",
    "connection closed by peer",
    "connection reset by peer",
    "nccl",
    "tcpstore",
    "broken pipe",
)
"""Phrases of a broken collective, which torch raises as a plain RuntimeError."""


class StageProgram(Protocol):
    """Describes the module of a kind of stage."""

    def run(self, config: Contract, context: StageContext, /) -> Contract:
        """Run the stage and return its report."""
        ...


def main(arguments: Sequence[str] | None = None, modules: Mapping[str, str] = STAGE_MODULES) -> int:
    """Run one rank and return its exit code; `modules` maps kinds of stage to the modules of their programs."""
    parser = argparse.ArgumentParser(prog="python -m dapt_trainer.worker")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--sha256")
    options = parser.parse_args(arguments)
    parent = os.environ.get(PARENT_PID, "")
    die_with_parent(int(parent) if parent.isdigit() else None)
    faulthandler.enable()
    set_up_log()

    settings = PodSettings.read()
    rank = int(os.environ.get("RANK", "0"))
    # The agent requests stacks before it kills a hung rank; ranks that wrote to one log would mix their lines.
    stacks = stacks_path(settings.ranks_folder, rank).open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    reserve = Reserve(settings.ranks_folder / f"reserve-{rank}")
    outcome = _outcome(settings, rank, lambda: _run(options.config, options.sha256, settings, rank, modules))
    # Without an outcome the agent knows only the exit status, so it must be written even on a full disk.
    reserve.write(lambda: write_outcome(settings.ranks_folder, outcome))
    return outcome.exit_code


def _outcome(settings: PodSettings, rank: int, work: Callable[[], Contract | None]) -> RankOutcome:
    """Return how the rank ended, and ignore SIGTERM from then on."""
    try:
        try:
            facts = work()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return RankOutcome(rank=rank, facts=_fields(facts) if rank == 0 else None)
        except BaseException as error:
            # torch's launcher sends SIGTERM to the peers of a failed rank. A rank that fails itself at that moment must
            # still report its own failure, not the stop.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return outcome_of(error, rank, settings.work)
    except StopRequested as late:  # SIGTERM arrived between the failure and the line that ignores it
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return outcome_of(late.__context__ or late, rank, settings.work)


def _run(
    config: Path, sha256: str | None, settings: PodSettings, rank: int, modules: Mapping[str, str]
) -> Contract | None:
    stage = read_stage(config, sha256)
    # The agent is the pod's first process; a rank that is started by hand has none.
    first_pid = os.getppid() if PARENT_PID in os.environ else os.getpid()
    board = Board(
        stage, Heart(settings.ranks_folder, rank), settings.peak_flops, first_pid if rank == 0 else None
    )
    _handle_sigterm(board)
    # Ctrl-C in a terminal reaches every process; the agent alone reacts and sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if rank == 0:
        serve(board, stage, settings.progress_port)
    program = _program(stage.kind, modules)
    settings.scratch.mkdir(parents=True, exist_ok=True)
    context = StageContext(
        stage=stage,
        work=settings.work,
        scratch=settings.scratch,
        progress=board,
        rank=rank,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        signing_key=settings.read_signing_key(),
        volume_bytes_per_second=max(1.0, settings.volume_bytes_per_second),
        preflight=PreflightSettings(settings.preflight, settings.processes_per_node, settings.node_name)
        if settings.preflight.enabled
        else None,
    )
    context.try_folder.mkdir(parents=True, exist_ok=True)
    try:
        report = program.run(stage.config, context)
    except StageEnded as end:
        # The stop rule ends pretraining by an exception; its curve and checkpoints are needed all the same.
        if rank == 0 and end.report is not None:
            write_report(settings.work, stage, end.report, key=context.signing_key)
        raise
    finally:
        if rank == 0:
            # What the stage had to write down to load it: see `written_models.for_stages`.
            remove_folder(context.try_folder / WRITTEN)
    if rank == 0:
        write_report(settings.work, stage, report, key=context.signing_key)
    return _facts_of(report)


def _handle_sigterm(board: Board) -> None:
    """Make SIGTERM set the board's flag in this process; in forked helpers it keeps its default action."""
    own_pid = os.getpid()

    def handle(*_: object) -> None:
        if os.getpid() == own_pid:
            board.request_stop()
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)


def _program(kind: str, modules: Mapping[str, str]) -> StageProgram:
    if kind not in modules:
        raise InputError(
            f"this image has no program for a stage of kind {kind!r}; it has {', '.join(modules)}"
        )
    # Importing torch and transformers runs the garbage collector dozens of times, a second in all, and each later run
    # would walk over everything that they loaded, for 0.3 seconds. Neither can free any of it.
    gc.disable()
    try:
        module = importlib.import_module(modules[kind])
    finally:
        gc.freeze()
        gc.enable()
    return cast(StageProgram, module)  # a module that is imported by name has no static type


def _facts_of(report: Contract) -> Contract | None:
    facts = getattr(report, "facts", None)
    return facts if isinstance(facts, Contract) else None


def _fields(facts: Contract | None) -> dict[str, object] | None:
    return None if facts is None else facts.model_dump(mode="json")


def outcome_of(error: BaseException, rank: int, work: Path) -> RankOutcome:
    """Return the outcome of a rank that raised; the traceback of an unexpected error goes to the log, not the message.

    Args:
        error: what ended the stage.
        rank: global rank.
        work: the work volume, whose free space is reported when a disk is full.
    """
    if isinstance(error, StageEnded):
        facts = _fields(error.facts) if rank == 0 else None
        return RankOutcome(
            rank=rank,
            exit_code=error.exit_code,
            cause=error.cause,
            problems=tuple(error.problems),
            facts=facts,
        )
    text = shortened(f"{type(error).__name__}: {error}".splitlines()[0], _MAX_ERROR_CHARACTERS)
    lowered = text.lower()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _failure(rank, Cause.INFRASTRUCTURE, ExitCode.INFRASTRUCTURE, _disk_full(error, work))
    if isinstance(error, PermissionError) and error.filename is not None:
        return _failure(rank, Cause.BAD_INPUT, ExitCode.BAD_INPUT, _forbidden(error))
    write_traceback(error)
    # By name: the classes are torch's, which only the stage's program imports.
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or names & {"OutOfMemoryError"} or _contains(lowered, _MEMORY_PHRASES):
        return _failure(
            rank, Cause.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY, f"rank {rank} ran out of memory: {text}"
        )
    is_network = isinstance(error, ConnectionError | TimeoutError) or names & {"DistError"}
    if is_network or (isinstance(error, RuntimeError) and _contains(lowered, _NETWORK_PHRASES)):
        message = f"rank {rank} lost its peers or the network: {text}"
        # The peer that failed first reports the root cause.
        return _failure(rank, Cause.INFRASTRUCTURE, ExitCode.INFRASTRUCTURE, message).as_effect()
    place = _place(error)
    return _failure(
        rank, Cause.CRASH, ExitCode.UNKNOWN, f"rank {rank} failed{place}: {text}; the log has the traceback"
    )


def _failure(rank: int, cause: Cause, code: ExitCode, message: str) -> RankOutcome:
    return RankOutcome(rank=rank, exit_code=code, cause=cause, problems=(message,))


def _forbidden(error: PermissionError) -> str:
    return (
        f"{error.filename}: permission denied for user {os.getuid()} of the pod; allow that user (or its group"
        f" {os.getgid()}) to read it, and to write it where it is a destination or the work volume"
    )


def _contains(text: str, phrases: Sequence[str]) -> bool:
    return any(phrase in text for phrase in phrases)


def _disk_full(error: OSError, work: Path) -> str:
    target = Path(str(error.filename)) if error.filename else work
    folder = next((path for path in (target, *target.parents) if path.exists()), work)
    free = shutil.disk_usage(folder).free
    return (
        f"{target}: no space left to write it ({free / 2**20:,.0f} MiB free in {folder}); what is complete is kept: "
        "free space or enlarge the volume, and the next run continues from there"
    )


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def end(code: int) -> None:
    """Exit at once, without the teardown of libraries: report and outcome are written, and a hang would lose them."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main())
