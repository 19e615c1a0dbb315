"""Bounds the processor time of work that a text, or a tokenizer, may keep busy for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from dapt_contract.sentences import shortened
from dapt_trainer.errors import InputError

Result = TypeVar("Result")
Limit = Callable[[int], int]
"""Returns the seconds of processor time for texts with that number of characters."""

_BEAT_SECONDS = 2.0
_SPARE_SECONDS, _SECONDS_A_MILLION_CHARACTERS = 60, 30
_GROUP_TEXTS = 256
_PANIC = "PanicException"
"""Name of the class of a panic, which the library does not export."""
_MAX_SHOWN_CHARACTERS = 160


class OutOfTimeError(Exception):
    """Says that work takes longer than it may."""


class TokenizerError(Exception):
    """Says that a tokenizer failed at a text, as one does whose pattern looks back and forth too often."""


def limit_seconds(characters: int) -> int:
    """Return the processor time that texts of this length may take; usual ones take a hundredth of it."""
    return _SPARE_SECONDS + _SECONDS_A_MILLION_CHARACTERS * characters // 1_000_000


def while_beating(
    work: Callable[[], Result], beat: Callable[[], None], *, every_seconds: float = _BEAT_SECONDS
) -> Result:
    """Return the result of work that is done in a thread, and call `beat` meanwhile.

    For network clients, which end a transfer that stands still by their own time limits. What `beat` raises ends the
    wait; the thread is left alone.
    """
    future = _in_thread(work)
    while True:
        try:
            return future.result(timeout=every_seconds)
        except TimeoutError:
            if future.done():
                return future.result()  # a TimeoutError may be the work's own
            beat()


def _in_thread(work: Callable[[], Result]) -> Future[Result]:
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="limited", daemon=True).start()
    return future


def within_limit(work: Callable[[], Result], seconds: int, beat: Callable[[], None]) -> Result:
    """Return the result of work that is done in a thread, which nothing can end but this process.

    Args:
        work: releases the interpreter's lock where it takes long. `encode_batch` of a tokenizer does, `encode` does
            not, and then the limit would be noticed too late.
        seconds: of processor time that it may take.
        beat: called while it runs.

    Raises:
        OutOfTimeError: it takes longer; the thread is left alone, so end the process soon.
        TokenizerError: the tokenizer fails.
    """

    def tokenize() -> Result:
        try:
            return work()
        except BaseException as error:
            # The library raises plain Exception, and where it panics a class that is none: either would end the stage
            # as if dapt itself had failed.
            if type(error) is Exception or type(error).__name__ == _PANIC:
                raise TokenizerError(_first_line(error)) from error
            raise

    future = _in_thread(tokenize)
    started = time.process_time()
    while True:
        try:
            return future.result(timeout=min(_BEAT_SECONDS, seconds))
        except TimeoutError:
            beat()
            if time.process_time() - started > seconds:
                raise OutOfTimeError from None


def slow_text(place: str, seconds: int) -> InputError:
    """Return the error about a text that takes too long; `place` is the field of the manifest, file and line."""
    return InputError(
        f"{place}: analysing this text takes more than {seconds} seconds of processor time, most likely in the model's "
        "tokenizer; remove the text, or use a model with another tokenizer"
    )


def failing_text(place: str, error: TokenizerError) -> InputError:
    """Return the error about a text at which the tokenizer fails; `place` as of `slow_text`."""
    return InputError(
        f"{place}: the model's tokenizer fails at this text ({error}); remove the text, or use a model with another "
        "tokenizer"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shortened(lines[0].rstrip("."), _MAX_SHOWN_CHARACTERS)


def try_texts(
    located: Iterable[tuple[str, list[str]]],
    encode: Callable[[list[str]], object],
    beat: Callable[[], None],
    limit: Limit = limit_seconds,
) -> None:
    """Tokenize texts, only to see that each of them can be.

    Args:
        located: (place, texts) of each record.
        encode: tokenizes some texts, and releases the interpreter's lock.
        beat: called now and then.
        limit: of a group of records.

    Raises:
        InputError: names the record at which a group exceeds its limit, or at which the tokenizer fails.
    """
    for group in _groups(located):
        seconds = limit(sum(len(text) for _, texts in group for text in texts))
        reached = [group[0][0]]

        def work(group: list[tuple[str, list[str]]] = group, reached: list[str] = reached) -> None:
            for place, texts in group:
                reached[0] = place
                encode(texts)

        try:
            within_limit(work, seconds, beat)
        except OutOfTimeError:
            raise slow_text(reached[0], seconds) from None
        except TokenizerError as error:
            raise failing_text(reached[0], error) from None


def _groups(located: Iterable[tuple[str, list[str]]]) -> Iterator[list[tuple[str, list[str]]]]:
    group: list[tuple[str, list[str]]] = []
    for entry in located:
        group.append(entry)
        if len(group) == _GROUP_TEXTS:
            yield group
            group = []
    if group:
        yield group
