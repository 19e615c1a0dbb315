"""Examples and pairs as they are prepared for fine-tuning and preference tuning, rendered by a test's template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dapt_trainer.data.chat.rendering import Conversation, LabelledText, Message, Renderer, TemplateSet
from dapt_trainer.data.chat.template_files import PLAIN_TEMPLATE

END = "<|end|>"


def turn(role: str, content: str) -> Message:
    """One message."""
    return {"role": role, "content": content}


def rendered(messages: Sequence[Message], template: str = PLAIN_TEMPLATE) -> LabelledText:
    """One text of a conversation, whose last message is learned."""
    renderer = Renderer(TemplateSet({"default": template}, {"eos_token": END}, (END,)))
    (text,) = renderer.render(Conversation(messages, (len(messages) - 1,)))
    return text


def write_instructions(work: Path, pairs: Sequence[tuple[str, str]], template: str = PLAIN_TEMPLATE) -> None:
    """Conversations of one turn, in the folder that a configuration without another one names."""
    texts = [rendered([turn("user", asked), turn("assistant", answer)], template) for asked, answer in pairs]
    _write(work / "instructions", [{"texts": [text.as_line()]} for text in texts])


def write_plain(work: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Prompts and responses without a chat template."""
    texts = [
        LabelledText(asked + answer, ((len(asked), len(asked + answer)),), is_plain=True)
        for asked, answer in pairs
    ]
    _write(work / "instructions", [{"texts": [text.as_line()]} for text in texts])


def write_pairs(work: Path, pairs: Sequence[tuple[str, str, str]]) -> None:
    """Prompts with a chosen and a rejected answer."""
    _write(
        work / "preferences",
        [
            {
                name: rendered([turn("user", prompt), turn("assistant", answer)]).as_line()
                for name, answer in (("chosen", chosen), ("rejected", rejected))
            }
            for prompt, chosen, rejected in pairs
        ],
    )


def _write(folder: Path, lines: Sequence[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
