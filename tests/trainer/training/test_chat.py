"""Tests which tokens have labels, for several chat templates, against hand-written texts and generation markers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dapt_trainer.training.chat import (
    IGNORED_LABEL,
    Example,
    TemplateError,
    encode,
    encode_plain,
    stop_at_end_of_turn,
    with_template,
)

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is  one and one?"},
    {"role": "assistant", "content": " two, I think "},
    {"role": "user", "content": "and three and one?"},
    {"role": "assistant", "content": "four!\n"},
]
SPECIAL = (
    "<|end|>", "<|begin|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<think>", "</think>",
)  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DROPS_REASONING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer_with(template: str | None, *, vocabulary: int = 400) -> Any:
    """Byte-level BPE with merges, so that a wrong cut changes tokens; no merges with a small vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [message["content"] for message in CHAT] + ["Answer: two\n\nQuestion: what is\n", "assistant\n\n"]
    tokenizer.train_from_iterator(texts * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|begin|>", pad_token="<|end|>"
    )
    fast.chat_template = template
    return fast


def by_hand(tokenizer: Any, pieces: list[tuple[str, bool]]) -> Example:
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in pieces:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += found
        labels += found if learned else [IGNORED_LABEL] * len(found)
    return Example(ids, labels)


def of_trl(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


@pytest.mark.parametrize(
    ("template", "pieces"),
    [
        pytest.param(
            CHATML,
            [
                ("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwhat is  one and one?<|im_end|>\n", False),
                ("<|im_start|>assistant\n", False),
                (" two, I think <|im_end|>", True),
                ("\n<|im_start|>user\nand three and one?<|im_end|>\n<|im_start|>assistant\n", False),
                ("four!\n<|im_end|>", True),
            ],
            id="chatml",
        ),
        pytest.param(
            of_trl("llama3"),
            [
                (f"<|begin|>{header('system')}be brief<|eot_id|>", False),
                (f"{header('user')}what is  one and one?<|eot_id|>{header('assistant')}", False),
                ("two, I think<|eot_id|>", True),
                (f"{header('user')}and three and one?<|eot_id|>{header('assistant')}", False),
                ("four!<|eot_id|>", True),
            ],
            id="llama3-trims",
        ),
        pytest.param(
            None,
            [
                ("be brief\n\nQuestion: what is  one and one?\nAnswer: ", False),
                (" two, I think <|end|>", True),
                ("\nQuestion: and three and one?\nAnswer: ", False),
                ("four!\n<|end|>", True),
            ],
            id="plain",
        ),
    ],
)  # fmt: skip
def test_only_the_assistants_turns_and_their_ends_have_labels(
    template: str | None, pieces: list[tuple[str, bool]]
) -> None:
    tokenizer = with_template(tokenizer_with(template))
    assert encode(tokenizer, CHAT) == [by_hand(tokenizer, pieces)]


def test_labels_equal_those_of_generation_markers() -> None:
    """Without merges, so that it does not matter that markers need prompt and response tokenized in one."""
    tokenizer = tokenizer_with(of_trl("llama3"), vocabulary=len(SPECIAL) + 256)
    marked = tokenizer_with(of_trl("llama3_training"), vocabulary=len(SPECIAL) + 256)
    wanted = marked.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    (example,) = encode(tokenizer, CHAT)
    assert example.input_ids == wanted["input_ids"]
    assert [int(label != IGNORED_LABEL) for label in example.labels] == wanted["assistant_masks"]


def test_a_template_that_drops_earlier_reasoning_gives_one_example_a_turn() -> None:
    tokenizer = tokenizer_with(DROPS_REASONING)
    chat = [
        {"role": "user", "content": "one and one?"},
        {"role": "assistant", "content": "<think>easy</think>two"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "<think>yes</think>yes"},
    ]
    asked = "<|im_start|>user\none and one?<|im_end|>\n<|im_start|>assistant\n"
    assert encode(tokenizer, chat) == [
        by_hand(tokenizer, [(asked, False), ("<think>easy</think>two<|im_end|>", True)]),
        by_hand(
            tokenizer,
            [
                (f"{asked}two<|im_end|>\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n", False),
                ("<think>yes</think>yes<|im_end|>", True),
            ],
        ),
    ]


def test_a_plain_example_has_no_template_and_a_labelled_end() -> None:
    tokenizer = tokenizer_with(CHATML)
    assert encode_plain(tokenizer, "one and", " one is two") == by_hand(
        tokenizer, [("one and", False), (" one is two<|end|>", True)]
    )


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant: ' }}"),
            "the chat template's generation prompt continues with ': ' where the assistant's turn continues with "
            "'\\n two, I think <|im_end|>\\n', so the assistant's text cannot be separated exactly; use a template "
            "whose generation prompt is the beginning of a turn",
        ),
        (
            "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
            "the chat template ends the assistant's turn with ' two, I think \\n', without a special token: the model "
            "would never learn to stop; make the template write eos_token after the assistant's content",
        ),
        (
            "{{ raise_exception('no system here') }}",
            "the model's chat template rejects the conversation: no system here",
        ),
    ],
)
def test_a_template_that_cannot_be_masked_exactly_is_refused(template: str, sentence: str) -> None:
    with pytest.raises(TemplateError) as caught:
        encode(tokenizer_with(template), CHAT)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(("known", "wanted"), [(7, [7, 3]), (None, [3]), ([3, 7], [3, 7])])
def test_generation_stops_where_the_template_ends_a_turn(known: Any, wanted: Any) -> None:
    tokenizer = tokenizer_with(CHATML)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 3
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known))
    stop_at_end_of_turn(model, tokenizer)
    assert model.generation_config.eos_token_id == wanted


def test_only_the_answer_has_labels_after_a_prompt_with_earlier_turns() -> None:
    tokenizer = tokenizer_with(CHATML)
    (example,) = encode(tokenizer, CHAT, first=4)
    assert [label for label in example.labels if label != IGNORED_LABEL] == tokenizer("four!\n<|im_end|>")[
        "input_ids"
    ]
