"""Tests what connects chat templates with tokenizers as transformers loads them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dapt_contract.base import JsonObject
from dapt_trainer.data.chat.rendering import Conversation, Renderer
from dapt_trainer.data.chat.template_files import PLAIN_TEMPLATE
from dapt_trainer.training.tuning.chat import stop_at_end_of_turn, templates_of, with_template
from support.chat_templates import CHATML, GEMMA, LLAMA3, QWEN3, TOOL_CHATML, tokenizer_with

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CHAT: list[JsonObject] = [
    {"role": "user", "content": "what is  one and one?"},
    {"role": "assistant", "content": " two, I think "},
    {"role": "user", "content": "and <three>\u2028 & one?"},
    {"role": "assistant", "content": "four!\n", "reasoning_content": "3 + 1"},
]


@pytest.mark.parametrize("template", [CHATML, GEMMA, LLAMA3, QWEN3, TOOL_CHATML, PLAIN_TEMPLATE])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_template_writes_what_transformers_writes(template: str, tools: Any) -> None:
    """The text up to the end of the last turn, whatever the template does with tools and reasoning."""
    tokenizer = tokenizer_with(template)
    expected = str(tokenizer.apply_chat_template(CHAT, tools=tools, tokenize=False))
    conversation = Conversation(CHAT, (3,), {"tools": tools} if tools and template == TOOL_CHATML else {})
    (text,) = Renderer(templates_of(tokenizer)).render(conversation)
    assert text.text == expected[: len(text.text)]
    assert not expected[len(text.text) :].strip()


@pytest.mark.parametrize(("known", "wanted"), [(7, [7, 3]), (None, [3]), ([3, 7], [3, 7])])
def test_generation_stops_where_the_template_ends_a_turn(known: Any, wanted: Any) -> None:
    tokenizer = tokenizer_with(CHATML)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 3
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known))
    stop_at_end_of_turn(model, tokenizer)
    assert model.generation_config.eos_token_id == wanted


def test_several_templates_without_a_default_leave_generation_as_it_is() -> None:
    tokenizer = tokenizer_with(None)
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=7))
    stop_at_end_of_turn(model, tokenizer)
    assert model.generation_config.eos_token_id == 7


def test_a_tokenizer_without_a_template_gets_the_plain_one() -> None:
    assert with_template(tokenizer_with(None)).chat_template == PLAIN_TEMPLATE
    assert with_template(tokenizer_with(CHATML)).chat_template == CHATML
