"""Renders conversations within limits: `python -m dapt_trainer.data.chat.render_process`, started by `render_pool`.

The first line of standard input is a `RendererSettings`, each later one a `RenderRequest`; each is answered by one
line of standard output, a `RenderAnswer`. The kernel ends this process when a conversation takes more processor time
than it may, since a template can keep the interpreter in one long call that no handler interrupts.
"""

from __future__ import annotations

import resource
import signal
import sys

from pydantic import Field, JsonValue, ValidationError

from dapt_contract.base import Contract
from dapt_trainer.data.chat.rendering import Conversation, Renderer, TemplateError, TemplateSet

MEMORY_BYTES = 2 << 30
"""Address space of the process."""


class RendererSettings(Contract):
    """Holds what a renderer needs once."""

    templates: dict[str, str]
    special_tokens: dict[str, str]
    control_tokens: tuple[str, ...]
    description: str
    max_cpu_seconds: int
    """Processor time of one conversation."""


class RenderRequest(Contract):
    """Holds one conversation; the fields are those of `Conversation`."""

    messages: list[dict[str, JsonValue]]
    learned: tuple[int, ...]
    variables: dict[str, JsonValue] = Field(default_factory=dict)
    checked_fields: tuple[tuple[int, str], ...] = ()


class RenderAnswer(Contract):
    """Holds the texts of one conversation, or why there are none."""

    texts: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = ()
    """(text, its responses)."""
    error: str = ""
    needs_memory: bool = False
    """Whether memory ran out."""


def unreadable(error: ValidationError) -> str:
    """Return why a conversation cannot be passed on to the renderer."""
    reason = str(error.errors(include_url=False, include_input=False)[0]["msg"])
    if "recursion" in reason.lower():
        return "the conversation is nested too deeply; shorten what its tools or tool calls hold"
    return f"the conversation cannot be rendered ({reason})"


def main() -> None:
    """Answer every request until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Only the parent decides when to stop: it closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = RendererSettings.model_validate_json(sys.stdin.readline())
    renderer = Renderer(
        TemplateSet(
            settings.templates, settings.special_tokens, settings.control_tokens, settings.description
        )
    )
    for line in sys.stdin:
        _limit_cpu_seconds(settings.max_cpu_seconds)
        sys.stdout.write(_answer(renderer, line).model_dump_json() + "\n")
        sys.stdout.flush()


def _limit_cpu_seconds(seconds: int) -> None:
    """Have the kernel end this process (SIGXCPU) after so much more processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_seconds = int(usage.ru_utime + usage.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used_seconds + seconds, resource.RLIM_INFINITY))


def _answer(renderer: Renderer, line: str) -> RenderAnswer:
    try:
        request = RenderRequest.model_validate_json(line)
        texts = renderer.render(
            Conversation(request.messages, request.learned, request.variables, request.checked_fields)
        )
    except ValidationError as error:
        return RenderAnswer(error=unreadable(error))
    except TemplateError as error:
        return RenderAnswer(error=str(error))
    except MemoryError:
        return RenderAnswer(needs_memory=True)
    except RecursionError:
        return RenderAnswer(error="the model's chat template calls itself without end")
    return RenderAnswer(texts=tuple((text.text, text.responses) for text in texts))


if __name__ == "__main__":
    main()
