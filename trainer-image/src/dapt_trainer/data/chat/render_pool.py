"""Starts processes that render conversations, and ends those that exceed their limits."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import LifoQueue
from types import TracebackType

from pydantic import ValidationError

from dapt_trainer.data.chat.render_process import (
    MEMORY_BYTES,
    RenderAnswer,
    RendererSettings,
    RenderRequest,
    unreadable,
)
from dapt_trainer.data.chat.rendering import Conversation, LabelledText, TemplateError, TemplateSet

MAX_CPU_SECONDS = 30
"""Processor time that one conversation may take; a usual one takes a thousandth of a second."""
_MAX_PROCESSES = 8
_BEAT_SECONDS = 2.0
_PENDING_A_PROCESS = 64


class LimitExceededError(TemplateError):
    """Reports that rendering a conversation took too much time or memory."""


class RenderPool:
    """Renders conversations in processes of their own, within limits of time, memory and length.

    Args:
        templates: of the base model's tokenizer.
        processes: how many to start; None: one a core, at most 8.
        max_cpu_seconds: processor time of one conversation.
        beat: called while the pool waits; what it raises ends the pool.
    """

    def __init__(
        self,
        templates: TemplateSet,
        *,
        processes: int | None = None,
        max_cpu_seconds: int = MAX_CPU_SECONDS,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = RendererSettings(
            templates=dict(templates.templates),
            special_tokens=dict(templates.special_tokens),
            control_tokens=tuple(templates.control_tokens),
            description=templates.description,
            max_cpu_seconds=max_cpu_seconds,
        )
        self._num_processes = processes or min(_MAX_PROCESSES, len(os.sched_getaffinity(0)))
        self._beat = beat
        # The last one that became idle is used first: a small data set starts few.
        self._idle: LifoQueue[_RenderProcess] = LifoQueue()
        self._processes = [_RenderProcess(self._settings) for _ in range(self._num_processes)]
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(self._num_processes, thread_name_prefix="render")

    def rendered(
        self, conversations: Iterable[Conversation]
    ) -> Iterator[tuple[LabelledText, ...] | TemplateError]:
        """Yield the texts of each conversation, or why there are none, in order.

        Raises:
            whatever `beat` raises.
        """
        pending: deque[Future[tuple[LabelledText, ...] | TemplateError]] = deque()
        try:
            for conversation in conversations:
                pending.append(self._threads.submit(self._render, conversation))
                if len(pending) > _PENDING_A_PROCESS * self._num_processes:
                    yield self._wait_for(pending.popleft())
            while pending:
                yield self._wait_for(pending.popleft())
        finally:
            # Whoever stops reading the answers must not make the next conversations wait for these.
            for future in pending:
                future.cancel()

    def _render(self, conversation: Conversation) -> tuple[LabelledText, ...] | TemplateError:
        process = self._idle.get()
        try:
            return process.render(conversation)
        except TemplateError as error:
            return error
        finally:
            self._idle.put(process)

    def _wait_for(
        self, future: Future[tuple[LabelledText, ...] | TemplateError]
    ) -> tuple[LabelledText, ...] | TemplateError:
        while True:
            try:
                return future.result(timeout=_BEAT_SECONDS)
            except TimeoutError:
                self._beat()

    def __enter__(self) -> RenderPool:
        """Return the pool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        # Threads that wait for an answer see the end of their process, so the processes go first.
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.close()
        self._threads.shutdown(wait=True)


class _RenderProcess:
    """Holds one process, and starts it again after it exceeded a limit."""

    def __init__(self, settings: RendererSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False

    def render(self, conversation: Conversation) -> tuple[LabelledText, ...]:
        """Return the texts of a conversation.

        Raises:
            TemplateError: as `Renderer.render`.
            LimitExceededError: it takes too much time or memory.
        """
        process = self._started()
        line = self._answer(process, _request_line(conversation))
        if not line:
            self._process = None
            _end(process)
            raise LimitExceededError(
                f"rendering the conversation takes more than {self._settings.max_cpu_seconds} seconds of processor "
                f"time or {MEMORY_BYTES >> 30} GiB of memory; use a model with another chat template, or shorten the "
                "conversation"
            )
        answer = RenderAnswer.model_validate_json(line)
        if answer.needs_memory:
            raise LimitExceededError(
                f"rendering the conversation takes more than {MEMORY_BYTES >> 30} GiB of memory; use a model with "
                "another chat template, or shorten the conversation"
            )
        if answer.error:
            raise TemplateError(answer.error)
        return tuple(LabelledText(text, responses) for text, responses in answer.texts)

    def close(self) -> None:
        """End the process."""
        self._is_closed = True
        if self._process is not None:
            _end(self._process)

    def _started(self) -> subprocess.Popen[str]:
        if self._is_closed:
            raise TemplateError("the renderer was stopped")
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dapt_trainer.data.chat.render_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # What the interpreter says when a limit ends it is no news to the user.
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            self._write(self._process, self._settings.model_dump_json())
        return self._process

    def _answer(self, process: subprocess.Popen[str], request: str) -> str:
        """Return the line with which the process answers; empty when it ended."""
        try:
            self._write(process, request)
            return process.stdout.readline() if process.stdout is not None else ""
        except (OSError, ValueError):  # a closed or broken pipe
            return ""

    def _write(self, process: subprocess.Popen[str], line: str) -> None:
        if process.stdin is not None:
            process.stdin.write(line + "\n")
            process.stdin.flush()


def _request_line(conversation: Conversation) -> str:
    """Return the line that asks for a conversation.

    Raises:
        TemplateError: the conversation holds what JSON cannot.
    """
    try:
        request = RenderRequest(
            messages=list(conversation.messages),
            learned=tuple(conversation.learned),
            variables=dict(conversation.variables),
            checked_fields=tuple(conversation.checked_fields),
        )
    except ValidationError as error:
        raise TemplateError(unreadable(error)) from error
    try:
        return json.dumps(request.model_dump(), allow_nan=False)
    except ValueError as error:
        raise TemplateError(
            "the conversation holds NaN or an infinite number, which JSON does not have; replace it"
        ) from error


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what it never read cannot be flushed
                pipe.close()
