"""Reads slices in several processes of this pod, each on one core, so that no document is sent from one to another."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from dapt_trainer.data.analysis import AnalysisPool, become_helper, process_killed_error
from dapt_trainer.data.slices.cut import CorpusSlice
from dapt_trainer.data.slices.read_slice import SliceReader
from dapt_trainer.data.slices.shared_reading import ReadingProgress, SharedReading
from dapt_trainer.errors import InfrastructureError, InputError, StageEnded
from dapt_trainer.limited_time import limit_seconds, slow_text
from dapt_trainer.linux import limit_processor_time

_BEAT_SECONDS = 2.0
_KERNEL_FACTOR, _KERNEL_SPARE_SECONDS = 2, 60
"""The kernel ends a process that its own limit could not: one call may keep the interpreter to itself."""


@dataclass
class _Worker:
    """Holds a process and the slice that it reads."""

    process: SpawnProcess
    connection: Connection
    corpus_slice: CorpusSlice


def read_in_processes(
    shared: SharedReading,
    slices: Sequence[CorpusSlice],
    progress: ReadingProgress,
    beat: Callable[[], None],
    processes: int,
) -> None:
    """Read slices in this number of processes.

    Args:
        shared: by all processes.
        slices: in the order in which they are taken; each is claimed when a process is free for it.
        progress: shown meanwhile.
        beat: called now and then; what it raises ends the processes.
        processes: most that are started; each uses its share of the cores.

    Raises:
        InputError: a text takes too long, or the tokenizer fails at it.
        InfrastructureError: one of the processes was killed, or failed for another reason than its text.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    workers: dict[Connection, _Worker] = {}
    claimed = (number for number, entry in enumerate(slices) if shared.board.claim(entry))
    try:
        for number in itertools.islice(claimed, processes):
            worker = _start(shared, slices, number, threads)
            workers[worker.connection] = worker
        while workers:
            answered = wait(list(workers), timeout=_BEAT_SECONDS)
            for connection, worker in list(workers.items()):
                if connection not in answered:
                    continue
                progress.note(worker.corpus_slice, _tokens_of(worker))
                following = next(claimed, None)
                if following is None:
                    connection.close()
                    del workers[connection]
                else:
                    worker.corpus_slice = slices[following]
                    connection.send(following)
            beat()
    finally:
        for worker in workers.values():
            worker.process.kill()


def _start(shared: SharedReading, slices: Sequence[CorpusSlice], number: int, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # not a fork, as in `AnalysisPool`
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(shared, tuple(slices), threads, os.getpid(), theirs))
    process.start()
    theirs.close()
    ours.send(number)
    return _Worker(process, ours, slices[number])


def _tokens_of(worker: _Worker) -> int:
    """Return the tokens of the slice that a process has finished.

    Raises:
        InputError: it found a text that cannot be analysed.
        InfrastructureError: the process was killed, or failed for another reason.
    """
    try:
        answer = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        if worker.process.exitcode == -signal.SIGXCPU:
            source, parts = worker.corpus_slice.source, worker.corpus_slice.parts
            file = parts[0].file if parts else source.files.files[0]
            raise slow_text(f"{source.field}: {file.label}", limit_seconds(0)) from None
        raise process_killed_error() from None
    if isinstance(answer, int):
        return answer
    raise answer


def _work(
    shared: SharedReading,
    slices: Sequence[CorpusSlice],
    threads: int,
    parent: int,
    connection: Connection,
) -> None:
    become_helper(parent)

    def limit(characters: int) -> int:
        seconds = limit_seconds(characters)
        limit_processor_time(_KERNEL_FACTOR * seconds + _KERNEL_SPARE_SECONDS)
        return seconds

    with AnalysisPool(shared.settings, processes=threads, limit=limit) as pool:
        reader = SliceReader(shared.rules, pool)
        while True:
            try:
                number = connection.recv()
            except EOFError:
                return
            connection.send(_answer(shared, reader, slices[number]))


def _answer(
    shared: SharedReading, reader: SliceReader, corpus_slice: CorpusSlice
) -> int | StageEnded | OSError:
    try:
        return shared.finish(reader, corpus_slice, lambda _: None).tokens
    except InputError as error:
        return InputError(*error.problems)
    except InfrastructureError as error:
        return InfrastructureError(*error.problems)
    except OSError as error:
        # With its number: a full disk has a message of its own.
        return OSError(error.errno, error.strerror, error.filename)
