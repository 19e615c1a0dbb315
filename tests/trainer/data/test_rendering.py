"""Tests what of a rendered conversation is learned, and which templates and fields are refused."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import JsonValue

from dapt_contract.base import JsonObject
from dapt_trainer.data.chat.render_pool import LimitExceededError, RenderPool
from dapt_trainer.data.chat.rendering import Conversation, LabelledText, Renderer, TemplateError, TemplateSet
from dapt_trainer.data.chat.template_files import PLAIN_TEMPLATE
from support.chat_templates import CHATML, DROPS_REASONING, GEMMA, LLAMA3, QWEN3, SPECIAL, TOOL_CHATML

CHAT: list[JsonObject] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is  one and one?"},
    {"role": "assistant", "content": " two, I think "},
    {"role": "user", "content": "and three and one?"},
    {"role": "assistant", "content": "four!\n"},
]
CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
ASKED_FOR_WEATHER = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": CALL},
    {"role": "tool", "content": "4 C"},
    {"role": "assistant", "content": "It is 4 C."},
]


def templates(template: str | dict[str, str]) -> TemplateSet:
    named = template if isinstance(template, dict) else {"default": template}
    return TemplateSet(named, {"eos_token": "<|end|>", "bos_token": "<|begin|>"}, SPECIAL)


def render(template: str | dict[str, str], messages: list[Any], **fields: Any) -> list[LabelledText]:
    learned = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return Renderer(templates(template)).render(Conversation(messages, **({"learned": learned} | fields)))


def pieces(text: LabelledText) -> list[str]:
    """Context and response in turn."""
    edges = [0, *(edge for span in text.responses for edge in span)]
    return [text.text[start:end] for start, end in itertools.pairwise(edges)]


def nested(levels: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(levels):
        value = [value]
    return value


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(
            CHATML,
            [
                "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwhat is  one and one?<|im_end|>\n<|im_start|>assistant\n",
                " two, I think <|im_end|>",
                "\n<|im_start|>user\nand three and one?<|im_end|>\n<|im_start|>assistant\n",
                "four!\n<|im_end|>",
            ],
            id="chatml",
        ),
        pytest.param(
            LLAMA3,
            [
                f"<|begin|>{header('system')}be brief<|eot_id|>{header('user')}what is  one and one?<|eot_id|>{header('assistant')}",
                "two, I think<|eot_id|>",
                f"{header('user')}and three and one?<|eot_id|>{header('assistant')}",
                "four!<|eot_id|>",
            ],
            id="llama3-trims",
        ),
        pytest.param(
            PLAIN_TEMPLATE,
            [
                "be brief\n\nQuestion: what is  one and one?\nAnswer: ",
                " two, I think <|end|>",
                "\nQuestion: and three and one?\nAnswer: ",
                "four!\n<|end|>",
            ],
            id="plain",
        ),
    ],
)
def test_only_the_assistants_turns_and_their_ends_are_learned(template: str, expected: list[str]) -> None:
    (text,) = render(template, CHAT)
    assert pieces(text) == expected


def test_a_template_that_drops_earlier_reasoning_gives_one_text_a_turn() -> None:
    chat = [
        {"role": "user", "content": "one and one?"},
        {"role": "assistant", "content": "<think>easy</think>two"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "<think>yes</think>yes"},
    ]
    asked = "<|im_start|>user\none and one?<|im_end|>\n<|im_start|>assistant\n"
    assert [pieces(text) for text in render(DROPS_REASONING, chat)] == [
        [asked, "<think>easy</think>two<|im_end|>"],
        [
            f"{asked}two<|im_end|>\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n",
            "<think>yes</think>yes<|im_end|>",
        ],
    ]


def test_a_turn_of_weight_zero_is_context() -> None:
    (text,) = render(CHATML, CHAT, learned=[4])
    assert pieces(text)[1::2] == ["four!\n<|im_end|>"]
    assert " two, I think " in pieces(text)[0]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_learned_under_each_of_its_names(name: str) -> None:
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2", name: "one and one"}]
    (text,) = render(QWEN3, chat, checked_fields=[(1, name)])
    assert pieces(text)[1] == "<think>\none and one\n</think>\n\n2<|im_end|>"


def test_tools_and_calls_reach_the_template_and_a_null_is_no_text() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    (text,) = render(
        TOOL_CHATML, ASKED_FOR_WEATHER, variables={"tools": tools}, checked_fields=[(1, "tool_calls")]
    )
    context, call, result, answer = pieces(text)
    assert '{"type": "function", "function": {"name": "weather"}}' in context
    assert call == '\n<call>weather {"city": "Oslo"}</call><|im_end|>'
    assert "4 C" in result
    assert answer == "It is 4 C.<|im_end|>"


@pytest.mark.parametrize(
    "content",
    ["m.content", "m.content | trim", "(m.content | string)", "(m.content if m.content is not none else '')"],
)
def test_a_null_content_is_never_written_as_a_word(content: str) -> None:
    template = CHATML.replace("m.content", f"({content}) + (m.tool_calls | string if m.tool_calls else '')")
    texts = render(template, ASKED_FOR_WEATHER, checked_fields=[(1, "tool_calls")])
    assert all("None" not in text.text for text in texts)


@pytest.mark.parametrize(
    ("template", "messages", "fields", "sentence"),
    [
        (
            CHATML,
            ASKED_FOR_WEATHER,
            {"checked_fields": [(1, "tool_calls")]},
            "messages[1].tool_calls is not used by the model's chat template; remove the field, or use a model whose template has a place for it",
        ),
        (
            CHATML,
            CHAT,
            {"variables": {"tools": [{"name": "weather"}]}},
            "field 'tools' is not used by the model's chat template; remove it, or use a model whose template has a place for it",
        ),
        (
            QWEN3,
            [*CHAT[:2], CHAT[2] | {"prefix": "x"}],
            {"checked_fields": [(2, "prefix")]},
            "messages[2].prefix is not used by the model's chat template; remove the field, or use a model whose template has a place for it",
        ),
        (GEMMA, CHAT, {}, "the model's chat template rejects the conversation: System role not supported"),
        (
            CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant: ' }}"),
            CHAT,
            {},
            "the chat template's generation prompt continues with ': ' where the assistant's turn continues with "
            "'\\n two, I think <|im_end|>\\n', so the assistant's text cannot be separated exactly; use a template whose "
            "generation prompt is the beginning of a turn",
        ),
        (
            "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
            CHAT,
            {},
            "the chat template ends the assistant's turn without a special token: the model would never learn to "
            "stop; make the template write eos_token after the assistant's content",
        ),
        (
            CHATML,
            [*CHAT[:2], {"role": "assistant", "content": "two<|im_end|>"}],
            {},
            "messages[2] has the token '<|im_end|>' in its text, which ends a turn: the model would learn to stop there; remove it from the text, since the chat template writes it",
        ),
        (
            "{% for m in messages %}{{ m.content }",
            CHAT,
            {},
            "the model's chat template is damaged (line 1: unexpected '}'); copy the model's tokenizer again, or correct its chat_template",
        ),
        (
            "{{ messages | nofilter }}",
            CHAT,
            {},
            "the model's chat template is damaged (line 1: No filter named 'nofilter'.); copy the model's tokenizer again, or correct its chat_template",
        ),
        (
            "{{ messages[0].content + 1 }}",
            CHAT,
            {},
            "the model's chat template fails at the conversation (TypeError: can only concatenate str (not \"int\") to str)",
        ),
        (
            {"tool_use": CHATML, "rag": CHATML},
            CHAT,
            {},
            "the model's tokenizer has the chat templates rag, tool_use and none that is named default; name one of them default in tokenizer_config.json",
        ),
    ],
)  # fmt: skip
def test_what_a_template_cannot_render_exactly_is_refused(
    template: Any, messages: list[Any], fields: Any, sentence: str
) -> None:
    with pytest.raises(TemplateError) as caught:
        render(template, messages, **fields)
    assert str(caught.value) == sentence


def test_of_several_templates_the_default_is_used_and_another_with_tools() -> None:
    named = {"default": CHATML, "tool_use": TOOL_CHATML, "rag": GEMMA}
    assert render(named, CHAT) == render(CHATML, CHAT)
    tools = [{"name": "weather"}]
    with_tools = render(named, CHAT, variables={"tools": tools})
    assert with_tools == render(TOOL_CHATML, CHAT, variables={"tools": tools})


def test_dates_and_random_choices_are_the_same_each_time() -> None:
    template = "{{ strftime_now('%d %b %Y') }}{{ range(1000) | list | random }}\n" + CHATML
    first, again = render(template, CHAT), render(template, CHAT)
    assert first == again
    assert first[0].text.startswith("01 Jan 2026")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' * 10 ** 12 }}",
        "{% set ns = namespace(x=['a']) %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_or_fills_the_memory_is_stopped(template: str) -> None:
    with RenderPool(templates(template), processes=1, max_cpu_seconds=1) as pool:
        (answer,) = pool.rendered([Conversation(CHAT, (2,))])
    assert isinstance(answer, LimitExceededError)
    assert str(answer).startswith("rendering the conversation takes more than ")


def test_a_pool_answers_in_order_and_goes_on_after_a_limit() -> None:
    template = (
        "{% if messages[0].content == 'loop' %}{{ 9 ** (9 ** (2 * messages[0].content | length + 1)) }}{% endif %}"
        + CHATML
    )
    chats: list[list[JsonObject]] = [
        [{"role": "user", "content": word}, {"role": "assistant", "content": "yes"}]
        for word in ("one", "loop", "two", "three")
    ]
    with RenderPool(templates(template), processes=2, max_cpu_seconds=1) as pool:
        answers = list(pool.rendered(Conversation(chat, (1,)) for chat in chats))
    assert isinstance(answers[1], LimitExceededError)
    assert [answers[index] for index in (0, 2, 3)] == [
        tuple(render(template, chats[index])) for index in (0, 2, 3)
    ]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        (nested(210), "the conversation is nested too deeply; shorten what its tools or tool calls hold"),
        (nested(400), "the conversation is nested too deeply; shorten what its tools or tool calls hold"),
        (
            float("nan"),
            "the conversation holds NaN or an infinite number, which JSON does not have; replace it",
        ),
    ],
    ids=["too deep for the renderer", "too deep for the pool", "no number"],
)
def test_a_conversation_that_json_cannot_hold_is_refused(argument: JsonValue, sentence: str) -> None:
    chat: list[JsonObject] = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "b",
            "tool_calls": [{"function": {"name": "f", "arguments": argument}}],
        },
    ]
    with RenderPool(templates(CHATML), processes=1) as pool:
        refused, good = pool.rendered([Conversation(chat, (1,)), Conversation(CHAT, (2,))])
    assert str(refused) == sentence
    assert not isinstance(good, TemplateError)


def test_a_text_can_be_written_and_read_again_and_damage_is_seen() -> None:
    (text,) = render(CHATML, CHAT)
    assert LabelledText.of_line(text.as_line()) == text
    for damaged in (None, {}, {"text": "ab", "responses": []}, {"text": "ab", "responses": [[1, 3]]}):
        with pytest.raises(ValueError, match="responses"):
            LabelledText.of_line(damaged)
