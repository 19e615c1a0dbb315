"""Tests that a rendered text becomes the tokens that the model meets when it answers, for every kind of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from dapt_trainer.data.chat.rendering import Conversation, LabelledText, Renderer, TemplateSet
from dapt_trainer.data.chat.template_files import PLAIN_TEMPLATE
from dapt_trainer.data.chat.tokens import Lengths, TextEncoder, cut_pair, examples_of
from dapt_trainer.modeling.labels import IGNORED_LABEL
from support import toy_tokenizers
from support.chat_templates import CHATML, GEMMA, LLAMA3

ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
NO_BORDER = (
    "{% for m in messages %}{{ 'the ' if m.role == 'assistant' else 'was ' }}{{ m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'the ' }}{% endif %}"
)
"""Its generation prompt ends with a space, which byte-level tokenizers join to the word after it."""
TEMPLATES = {
    "zephyr": ZEPHYR, "llama2": LLAMA2, "llama3": LLAMA3, "chatml": CHATML, "gemma": GEMMA, "plain": PLAIN_TEMPLATE,
    "no-border": NO_BORDER,
}  # fmt: skip
CHATS = [
    [("user", "What was asked?"), ("assistant", "The heart was seen.")],
    [
        ("user", " the  dose"),
        ("assistant", " at night; 15 µg 🩺"),
        ("user", "so?"),
        ("assistant", "\nit's fine\n\n"),
    ],
    [("user", "русский"), ("assistant", "ñandú"), ("user", "x"), ("assistant", "  two  spaces ")],
]


def legacy_sentencepiece() -> str:
    """As the tokenizer.json of Llama 2, TinyLlama and Mistral 7B v0.1: a normalizer puts a space before every piece."""
    settings = json.loads(toy_tokenizers.sentencepiece_bpe())
    settings["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    settings["pre_tokenizer"] = None
    return json.dumps(settings)


def word_pieces() -> str:
    """As BERT's: white space is lost, and words are split into pieces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(toy_tokenizers.PLAIN, trainer)
    return str(tokenizer.to_str())


KINDS: dict[str, Callable[[], str]] = {
    "byte-level": toy_tokenizers.byte_level,
    "byte-level-llama3": lambda: toy_tokenizers.byte_level(pattern=toy_tokenizers.LLAMA3),
    "sentencepiece-metaspace": toy_tokenizers.sentencepiece_bpe,
    "sentencepiece-legacy": legacy_sentencepiece,
    "sentencepiece-gemma": lambda: toy_tokenizers.sentencepiece_bpe(metaspace=False),
    "unigram": toy_tokenizers.unigram,
    "wordpiece": word_pieces,
}


LOSING_SPACE = ("wordpiece",)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """One of each kind."""
    return with_control_tokens(KINDS[request.param]())


def with_control_tokens(tokenizer_json: str) -> Tokenizer:
    """With the end tokens of the templates; one swallows white space, as Phi's do."""
    made = Tokenizer.from_str(tokenizer_json)
    made.add_special_tokens(
        ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
         "<start_of_turn>", "<end_of_turn>", AddedToken("<|assistant|>", rstrip=True, special=True)]
    )  # fmt: skip
    return made


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


def encoder_of(tokenizer: Tokenizer) -> TextEncoder:
    return TextEncoder(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda text: tokenizer.encode(text).ids,
        id_of(tokenizer, "</s>"),
    )


def spelled(tokenizer: Tokenizer, ids: list[int], start: int, end: int) -> str:
    """What tokens add to the text before them."""
    before, whole = (tokenizer.decode(ids[:count], skip_special_tokens=False) for count in (start, end))
    return whole.removeprefix(before)


def rendered(template: str, chat: list[tuple[str, str]]) -> list[LabelledText]:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    control = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<start_of_turn>")
    messages: list[Any] = [{"role": role, "content": content} for role, content in chat]
    turns = [index for index, (role, _) in enumerate(chat) if role == "assistant"]
    return Renderer(TemplateSet({"default": template}, tokens, control)).render(Conversation(messages, turns))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chat", range(len(CHATS)))
def test_context_and_response_are_those_of_generation(tokenizer: Tokenizer, template: str, chat: int) -> None:
    encode = encoder_of(tokenizer).encode
    for text in rendered(TEMPLATES[template], CHATS[chat]):
        examples = examples_of(text, encoder_of(tokenizer))
        whole = list(encode(text.text))
        if len(examples) == 1 and len(text.responses) > 1:
            # One example has the tokens of the rendered conversation, and every turn begins where generation does.
            assert list(examples[0].input_ids) == whole
            spans = [(examples[0], span) for span in text.responses]
        else:
            assert len(examples) == len(text.responses)
            spans = list(zip(examples, text.responses, strict=True))
        for example, (start, end) in spans:
            context = list(encode(text.text[:start]))
            assert list(example.input_ids[: len(context)]) == context
            assert example.labels[len(context)] == example.input_ids[len(context)]
            if list(encode(text.text[:end]))[: len(context)] == context:
                assert list(example.input_ids[: len(encode(text.text[:end]))]) == list(
                    encode(text.text[:end])
                )
        learned = [sum(label != IGNORED_LABEL for label in example.labels) for example in examples]
        assert all(learned)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LOSING_SPACE])
@pytest.mark.parametrize("template", ["llama2", "chatml", "plain", "no-border"])
def test_the_learned_tokens_spell_the_responses_to_the_byte(kind: str, template: str) -> None:
    """No space is learned that is not there, and none is lost."""
    tokenizer = with_control_tokens(KINDS[kind]())
    for text in (text for chat in CHATS for text in rendered(TEMPLATES[template], chat)):
        learned: list[str] = []
        for example in examples_of(text, encoder_of(tokenizer)):
            ids = list(example.input_ids)
            starts = [n for n, label in enumerate(example.labels) if label >= 0 > example.labels[n - 1]]
            ends = [
                n + 1 for n, label in enumerate(example.labels) if label >= 0 > [*example.labels, -1][n + 1]
            ]
            learned += [spelled(tokenizer, ids, start, end) for start, end in zip(starts, ends, strict=True)]
        assert learned == [text.text[start:end] for start, end in text.responses]


def test_a_token_that_would_span_the_border_is_split_there() -> None:
    tokenizer = Tokenizer.from_str(toy_tokenizers.byte_level())
    encoder = TextEncoder(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda text: tokenizer.encode(text).ids,
        id_of(tokenizer, "<|end|>"),
    )
    text = LabelledText("seen the heart<|end|>", ((9, 21),))
    assert [tokenizer.id_to_token(token) for token in encoder.encode(text.text)][-2:] == ["Ġheart", "<|end|>"]
    (example,) = examples_of(text, encoder)
    response = [label for label in example.labels if label != IGNORED_LABEL]
    context = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label < 0]
    assert context == list(encoder.encode("seen the "))
    assert tokenizer.decode(response, skip_special_tokens=False) == "heart<|end|>"


@pytest.mark.parametrize(
    "kind", ["sentencepiece-metaspace", "sentencepiece-legacy", "byte-level", "sentencepiece-gemma"]
)
def test_a_plain_response_follows_its_prompt_as_both_are_written(kind: str) -> None:
    tokenizer = Tokenizer.from_str(KINDS[kind]())
    tokenizer.add_special_tokens(["</s>"])
    for prompt, response in (
        ("Seen was:\n", "the heart"),
        ("dose", " at night"),
        ("the ", "heart"),
        ("fe", "ver"),
    ):
        text = LabelledText(prompt + response, ((len(prompt), len(prompt + response)),), is_plain=True)
        (example,) = examples_of(text, encoder_of(tokenizer))
        assert tokenizer.decode(list(example.input_ids)).removeprefix(" ") == prompt + response
        assert example.input_ids[-1] == example.labels[-1] == tokenizer.token_to_id("</s>")
        context = list(tokenizer.encode(prompt).ids)
        assert list(example.input_ids[: len(context)]) == context
        assert set(example.labels[: len(context)]) == {IGNORED_LABEL}


def test_pairs_are_cut_counted_and_dropped_where_they_are_equal() -> None:
    tokenizer = Tokenizer.from_str(toy_tokenizers.byte_level())
    encoder = TextEncoder(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda text: tokenizer.encode(text).ids,
        id_of(tokenizer, "<|end|>"),
    )

    def answer(text: str) -> LabelledText:
        return LabelledText(f"q:{text}<|end|>", ((2, 2 + len(text) + 7),))

    lengths = Lengths()
    same = "the heart was seen " * 5
    kept = cut_pair(answer("yes"), answer("no"), encoder, 20, lengths)
    assert kept is not None
    assert kept.chosen.input_ids != kept.rejected.input_ids
    assert cut_pair(answer(same + "A"), answer(same + "B"), encoder, 10, lengths) is None
    assert cut_pair(answer("a"), answer("b"), encoder, 2, lengths) is None
    assert (lengths.kept, lengths.cut, lengths.without_response, lengths.equal) == (1, 0, 1, 1)
