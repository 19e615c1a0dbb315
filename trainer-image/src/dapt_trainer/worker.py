"""One rank: reads stage.json, runs the stage's program, leaves its report and its outcome.

Started by the agent (`python -m dapt_trainer.worker`), once for every process of the pod. Exit codes are the
contract's; the outcome file in the scratch folder says the rest, the agent judges over all ranks.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import importlib
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dapt_contract.base import Contract
from dapt_contract.failure import Cause, ExitCode
from dapt_contract.stage_file import write_report
from dapt_trainer.context import StageContext
from dapt_trainer.errors import InputError, StageError, StopRequested
from dapt_trainer.linux import PARENT_PID, die_with_parent
from dapt_trainer.pod.disk_reserve import Reserve
from dapt_trainer.pod.heartbeat import Heart, stacks_path
from dapt_trainer.pod.outcome import RankOutcome, write_outcome
from dapt_trainer.pod.progress import Board, serve
from dapt_trainer.pod.settings import PodSettings
from dapt_trainer.pod.stage_input import read_stage
from dapt_trainer.stages import STAGE_MODULES

_MEMORY_SENTENCES = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
_NETWORK_SENTENCES = (
    "gloo",
    "connection closed by peer",
    "connection reset by peer",
    "nccl",
    "tcpstore",
    "broken pipe",
)


def main(arguments: Sequence[str] | None = None, modules: Mapping[str, str] = STAGE_MODULES) -> int:
    """Run one rank; returns its exit code. `modules` maps kinds of stage to the modules of their programs."""
    parser = argparse.ArgumentParser(prog="python -m dapt_trainer.worker")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--sha256")
    options = parser.parse_args(arguments)
    parent = os.environ.get(PARENT_PID, "")
    die_with_parent(int(parent) if parent.isdigit() else None)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)

    settings = PodSettings.read()
    rank = int(os.environ.get("RANK", "0"))
    # The agent asks for stacks before it kills a hung rank; ranks that wrote to one log would mix their lines.
    stacks = stacks_path(settings.ranks_folder, rank).open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    reserve = Reserve(settings.ranks_folder / f"reserve-{rank}")
    outcome = _outcome(settings, rank, lambda: _run(options.config, options.sha256, settings, rank, modules))
    reserve.write(lambda: write_outcome(settings.ranks_folder, outcome))
    return outcome.exit_code


def _outcome(settings: PodSettings, rank: int, work: Callable[[], Contract | None]) -> RankOutcome:
    """How the rank ended. From there on a stop is not heard any more: the launcher asks the peers of a failed rank to
    stop, and one that fails itself at that moment must still say how."""
    try:
        try:
            facts = work()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return RankOutcome(rank=rank, facts=_plain(facts) if rank == 0 else None)
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return outcome_of(error, rank, settings.work)
    except StopRequested as late:  # it came between the failure and the line that stops hearing it
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return outcome_of(late.__context__ or late, rank, settings.work)


def _run(
    config: Path, sha256: str | None, settings: PodSettings, rank: int, modules: Mapping[str, str]
) -> Contract | None:
    stage = read_stage(config, sha256)
    board = Board(stage, Heart(settings.ranks_folder, rank), settings.peak_flops)
    _take_stops(board)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the agent decides; a terminal's Ctrl-C reaches every process
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
        signing_key=settings.signing_key_file.read_bytes() if settings.signing_key_file else b"",
    )
    context.try_folder.mkdir(parents=True, exist_ok=True)
    try:
        report: Contract = program.run(stage.config, context)
    except StageError as error:
        told = getattr(error, "report", None)
        if rank == 0 and told is not None:
            write_report(settings.work, stage, told)
        raise
    if rank == 0:
        write_report(settings.work, stage, report)
    return _facts_of(report)


def _take_stops(board: Board) -> None:
    """Turn SIGTERM into the board's flag, in this process alone: forked helpers end as if nobody had asked."""
    own = os.getpid()

    def handle(*_: object) -> None:
        if os.getpid() == own:
            board.request_stop()
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)


def _program(kind: str, modules: Mapping[str, str]) -> Any:
    if kind not in modules:
        raise InputError(
            f"this image has no program for a stage of kind {kind!r}; it has {', '.join(modules)}"
        )
    return importlib.import_module(modules[kind])


def _facts_of(report: Contract) -> Contract | None:
    facts = getattr(report, "facts", None)
    return facts if isinstance(facts, Contract) else None


def _plain(facts: Contract | None) -> dict[str, Any] | None:
    return None if facts is None else facts.model_dump(mode="json")


def outcome_of(error: BaseException, rank: int, work: Path) -> RankOutcome:
    """What an exception means for the run. The traceback of a surprise goes to the log, never into the sentence.

    Args:
        error: what ended the stage.
        rank: global rank.
        work: the work volume, whose free space is told when a disk is full.
    """
    if isinstance(error, StageError):
        facts = _plain(error.facts) if rank == 0 else None
        return RankOutcome(
            rank=rank,
            exit_code=error.exit_code,
            cause=error.cause,
            problems=tuple(error.problems),
            facts=facts,
        )
    text = f"{type(error).__name__}: {error}".splitlines()[0][:400]
    lowered = text.lower()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _failure(rank, Cause.INFRASTRUCTURE, ExitCode.INFRASTRUCTURE, _disk_full(error, work))
    if isinstance(error, PermissionError) and error.filename is not None:
        return _failure(rank, Cause.BAD_INPUT, ExitCode.BAD_INPUT, _forbidden(error))
    traceback.print_exception(error, file=sys.stdout)
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or names & {"OutOfMemoryError"} or _says(lowered, _MEMORY_SENTENCES):
        return _failure(
            rank, Cause.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY, f"rank {rank} ran out of memory: {text}"
        )
    network = isinstance(error, ConnectionError | TimeoutError) or names & {"DistError"}
    if network or (isinstance(error, RuntimeError) and _says(lowered, _NETWORK_SENTENCES)):
        sentence = f"rank {rank} lost its peers or the network: {text}"
        lost = _failure(rank, Cause.INFRASTRUCTURE, ExitCode.INFRASTRUCTURE, sentence)
        return lost.model_copy(update={"effect": True})
    place = _place(error)
    return _failure(
        rank, Cause.CRASH, ExitCode.UNKNOWN, f"rank {rank} failed{place}: {text}; the log has the traceback"
    )


def _failure(rank: int, cause: Cause, code: ExitCode, sentence: str) -> RankOutcome:
    return RankOutcome(rank=rank, exit_code=code, cause=cause, problems=(sentence,))


def _forbidden(error: PermissionError) -> str:
    return (
        f"{error.filename}: user {os.getuid()} of the pod may not use it; let that user (or its group"
        f" {os.getgid()}) read it, or write it where it is a destination or the work volume"
    )


def _says(text: str, parts: Sequence[str]) -> bool:
    return any(part in text for part in parts)


def _disk_full(error: OSError, work: Path) -> str:
    where = Path(str(error.filename)) if error.filename else work
    folder = next((path for path in (where, *where.parents) if path.exists()), work)
    free = shutil.disk_usage(folder).free
    return (
        f"{where}: no space left to write it ({free / 2**20:,.0f} MiB free in {folder}); what was complete before is "
        "kept: free space or enlarge the volume, the run goes on from there"
    )


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def end(code: int) -> None:
    """Leave at once: report and outcome are written, and a teardown that hangs must not undo them."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main())
