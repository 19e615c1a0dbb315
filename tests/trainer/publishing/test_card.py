"""The card says what was measured and what the base model's card says, in metadata that the hub's own classes read."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from dapt_contract.stages.publish import CardFacts, LearnedData
from dapt_trainer.publishing.card import model_card
from dapt_trainer.publishing.card_metadata import BaseCard, read_base_card
from dapt_trainer.publishing.public_text import without_paths
from support.card_builders import measure, publish_config
from support.hostile_texts import HOSTILE_TEXTS, assert_inert

INSTALLED = version("transformers")


def card_of(**changes: Any) -> str:
    config = publish_config("hf://org/clinical")
    return model_card(config.model_copy(update={"card": config.card.model_copy(update=changes)}))


def test_the_card_has_the_numbers_and_nothing_that_was_not_measured() -> None:
    card = card_of()
    assert "| domain perplexity | 20.086 | 12.182 |" in card
    assert "| codes (task) | domain | 50 | 30.0 ± 7.0 | 50.0 ± 7.0 |" in card
    assert "not meant for deployment" in card
    assert "- the domain has 745 tokens" in card
    assert "Scored: 200 domain and 200 general tokens of text held out of training" in card
    assert "this model" not in card.split("## Training")[0].split("## Measurements")[1]


def test_the_hub_reads_base_data_sets_and_results() -> None:
    sources = ("hf://datasets/org/notes@abc/data/*.parquet", "file:///home/alice/notes.jsonl")
    card = card_of(domain_sources=sources, final=measure(2.0, 0.75), fine_tuned=True, sft_examples=7)
    data = ModelCard(card).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (
        "org/base",
        "transformers",
        "text-generation",
    )
    assert data.datasets == ["org/notes"]
    assert data.tags == ["domain-adaptation", "continued-pretraining", "sft"]
    found = [(result.dataset_name, result.metric_type, result.metric_value) for result in data.eval_results]
    assert found == [
        ("held-out domain text", "perplexity", 7.389),
        ("held-out general text", "perplexity", 7.389),
        ("codes (domain)", "accuracy", 0.75),
    ]


def test_no_path_of_a_machine_and_no_bucket_is_public() -> None:
    card = card_of(
        base_model="file:///home/alice/models/llama",
        domain_sources=("file:///home/alice/notes.jsonl", "s3://secret-bucket/team/reports/*.parquet"),
        tuning_data=(LearnedData(kind="instructions", sources=("pvc://claims/team/chat.jsonl",)),),
    )
    for private in ("alice", "secret-bucket", "/home", "pvc://", "team"):
        assert private not in card
    assert "- Domain source: `notes.jsonl`" in card
    assert "- Fine-tuning source: `chat.jsonl`" in card
    assert ModelCard(card).data.base_model is None


PRIVATE = (
    "a file of /home/alice/my notes/b.jsonl is /home/alice/my notes/a.jsonl",
    "/home/alice/work has 3.2 GiB free; lower spec.pretraining.checkpoints.count",
    "domain[0]: ~/alice/x.jsonl leads back (file:///srv/alice/y.jsonl)",
    "s3://alice/data/x.jsonl:3: damaged",
    "/srv/a, b: alice/c.jsonl is read once",
    "path=/mnt/claims/alice/z.txt",
)


SOURCES = (
    "file:///srv/a, b: alice/*.jsonl",
    "file:///home/alice/my notes/*.jsonl",
    "pvc://alice/notes.jsonl",
)
TEXTS = [name for name, field in CardFacts.model_fields.items() if "str" in str(field.annotation)]


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_of_the_card_has_a_path_of_a_machine(name: str) -> None:
    is_single = "tuple" not in str(CardFacts.model_fields[name].annotation)
    for text in SOURCES if name in ("base_model", "domain_sources", "general_sources") else PRIVATE:
        card = card_of(**{"domain_sources": SOURCES} | {name: text if is_single else (text,)})
        assert "alice" not in card


@pytest.mark.parametrize(
    "text",
    [
        "general perplexity +21.0% (half B: 1/3 of 4,096 tokens/step, and/or more)",
        "hf://datasets/org/alice@main/data/**/*.parquet",
        "https://example.org/alice/terms",
        "spec.corpus.domain[0] / spec.corpus.general[0] have 3 documents",
    ],
)
def test_other_texts_with_slashes_stay_as_they_are(text: str) -> None:
    assert without_paths(text) == text


def test_sentences_about_files_keep_the_names_of_the_files() -> None:
    assert without_paths(
        "domain[0]: 2 file(s) are read once; /srv/my data/b.jsonl is /srv/my data/a.jsonl."
    ) == ("domain[0]: 2 file(s) are read once; b.jsonl is a.jsonl.")


def test_the_card_names_tuning_data_with_its_digest() -> None:
    card = card_of(
        tuning_data=(
            LearnedData(
                kind="instructions",
                sources=("file:///home/alice/chat.jsonl", "hf://datasets/org/chats@1/*.jsonl"),
                records=1200,
                digest="0123456789abcdef",
            ),
            LearnedData(kind="preferences", sources=("s3://bucket/pairs.jsonl",), records=7),
        )
    )
    assert (
        "- Fine-tuning source: `chat.jsonl`\n- Fine-tuning source: `hf://datasets/org/chats@1/*.jsonl`"
        in card
    )
    assert "- Fine-tuning data: 1,200 prepared examples, SHA-256 `0123456789abcdef...`" in card
    assert "- Preference source: `pairs.jsonl`" in card
    assert "Preference data" not in card
    assert ModelCard(card).data.datasets == ["org/chats"]


MARKDOWN = (
    *HOSTILE_TEXTS,
    "`code` and ```fences``` visible",
    "# visible heading",
    "- visible", "1. visible", "2) visible", "> visible", "+ visible", "=== visible", "--- visible",
    "    visible\n\n    indented",
    "| a | visible |\n| --- | --- |",
    "<!-- visible --> <a href=x>&lt;b&gt; &#x202e;",
    "<http://evil.example/visible> http://evil.example/visible www.evil.example mail@evil.example",
    "[visible]: http://evil.example\n[visible][1] ![x][1]",
    "$$visible$$ \\\\(x\\\\) \\`visible\\`",
    "*visible* _visible_ ~~visible~~ [ ] [x] [^1]",
    "visible`", "`visible", "``visible```", "\\", "visible\\",
    "visible \\(x\\) \\[x\\] \\\\(x\\\\)",
)  # fmt: skip


def inline_tokens(tokens: list[Token]) -> list[Token]:
    return [inner for token in tokens for inner in [token, *inline_tokens(token.children or [])]]


def body_tokens(card: str) -> list[Token]:
    """What a reader of Markdown with tables makes of the card below its front matter."""
    body = card.split("\n---\n", 1)[1]
    return inline_tokens(MarkdownIt("commonmark").enable("table").parse(body))


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_others_are_shown_in_the_card_and_do_nothing(name: str) -> None:
    is_single = "tuple" not in str(CardFacts.model_fields[name].annotation)
    plain = card_of(**{name: "plain" if is_single else ("plain",)})
    honest = [token.type for token in body_tokens(plain)]
    for text in MARKDOWN:
        card = card_of(**{name: text if is_single else (text,)})
        assert_inert(card)
        tokens = body_tokens(card)
        structure = [token.type for token in tokens if token.type != "softbreak"]
        assert sorted({*structure} - {*honest}) in ([], ["code_inline"], ["text_special"]), (text, structure)
        for kind in ("heading_open", "table_open", "list_item_open", "fence", "paragraph_open"):
            assert structure.count(kind) == honest.count(kind), (text, kind)
        assert ModelCard(card).data.library_name == "transformers"
        assert set(ModelCard(card).data.to_dict()) <= {
            *ModelCard(plain).data.to_dict(),
            "license_name",
            "datasets",
        }


def test_no_text_of_others_begins_a_formula_of_the_hub() -> None:
    assert "\\\\(" not in card_of(warnings=(r"a \(x\) \\(y\\)",))


def test_a_hostile_text_is_read_as_it_is_written() -> None:
    text = "*a* _b_ [c](d) <e> `f` | # g \\ &amp; $h$ ~~i~~ http://j"
    tokens = body_tokens(card_of(warnings=(text,)))
    assert any(
        "".join(inner.content for inner in token.children or []) == text
        for token in tokens
        if token.type == "inline"
    )


def test_what_the_base_models_card_says_is_cleaned(tmp_path: Path) -> None:
    for text in HOSTILE_TEXTS[:-1]:
        data = {"license": "other", "license_name": text, "license_link": text}
        front = "\n".join(f"{name}: {json.dumps(value)}" for name, value in data.items())
        (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
        assert_inert(model_card(publish_config("hf://org/x"), read_base_card(tmp_path)))


LLAMA = BaseCard("other", "llama3", "LICENSE", ("en",))


@pytest.mark.parametrize(
    ("wanted", "base", "written"),
    [
        (None, LLAMA, ("other", "llama3", "LICENSE")),
        (None, BaseCard(), (None, None, None)),
        ("MIT", LLAMA, ("mit", None, None)),
        ("llama3.1", BaseCard("mit"), ("llama3.1", None, None)),
        ("Other", LLAMA, ("other", "llama3", "LICENSE")),
        ("GPL-3.0-only", BaseCard("mit"), ("other", "GPL-3.0-only", None)),
        (None, BaseCard("other", "ours", "/home/alice/TERMS"), ("other", "ours", "TERMS")),
    ],
)
def test_the_licence_is_the_wanted_one_in_the_words_of_the_hub(
    wanted: str | None, base: BaseCard, written: tuple[str | None, ...]
) -> None:
    config = publish_config("hf://org/clinical")
    config = config.model_copy(update={"card": config.card.model_copy(update={"license": wanted})})
    data = ModelCard(model_card(config, base)).data
    assert (data.license, data.license_name, data.license_link) == written


def test_wanted_languages_come_first_and_what_the_hub_refuses_is_left_out() -> None:
    config = publish_config("hf://org/clinical")
    base = BaseCard(language=("pt", "es-ES", "English"))
    assert ModelCard(model_card(config, base)).data.language == ["pt"]
    wanted = config.model_copy(update={"card": config.card.model_copy(update={"language": ("no", "zho")})})
    assert ModelCard(model_card(wanted, base)).data.language == ["no", "zho"]


def test_licence_and_language_are_the_base_models(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\nlanguage: [en, de]\n---\n# Base\n"
    )
    base = read_base_card(tmp_path)
    assert base == BaseCard("other", "llama3", "LICENSE", ("en", "de"))
    data = ModelCard(model_card(publish_config("hf://org/clinical"), base)).data
    assert (data.license, data.license_name, data.language) == ("other", "llama3", ["en", "de"])
    assert read_base_card(tmp_path / "nowhere") == BaseCard()
    (tmp_path / "README.md").write_text("no metadata at all")
    assert read_base_card(tmp_path) == BaseCard()


_BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
FRONT_MATTERS = {
    "text that is open": 'license: "mit',
    "a tag": "license: !!python/object/apply:os.system [id]",
    "an anchor in itself": "x: &x {<<: *x}\nlanguage: &y [*y]",
    "aliases of aliases": f"{_BOMB}language: [*a29]",
    "aliases as one language": f"{_BOMB}language: *a29",
    "thousands of brackets": "license: " + "[" * 5000,
    "a list as a name": "? [a]\n: b",
    "names of arguments": "self: 1\neval_results: 2\nignore_metadata_errors: 3",
    "a megabyte": "license: '" + "x" * 2**20 + "'",
    "a long licence": "license: " + "x" * 2000,
    "a time that is none": "language: {a: b}",
    "no end": "license: mit\n" + "\n" * 200_000,
    "a list": "- license",
    "results that are none": "model-index: [{name: 5, results: [{}]}]",
    "nothing as text": "license: ~\nlicense_name: null\nlanguage: [~, '', null]",
}


@pytest.mark.parametrize("name", FRONT_MATTERS)
def test_a_base_models_card_that_means_harm_says_nothing(tmp_path: Path, name: str) -> None:
    end = "" if name == "no end" else "\n---\n# Base\n"
    (tmp_path / "README.md").write_text(f"---\n{FRONT_MATTERS[name]}{end}")
    assert read_base_card(tmp_path) == BaseCard()


def test_a_base_models_card_that_is_no_file_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "README.md").symlink_to("elsewhere")
    assert read_base_card(tmp_path) == BaseCard()
    (tmp_path / "README.md").unlink()
    os.mkfifo(tmp_path / "README.md")
    assert read_base_card(tmp_path) == BaseCard()


def test_languages_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlanguage:\n- no\n- 'yes'\n- en\n---\n")
    assert read_base_card(tmp_path).language == ("no", "yes", "en")
    (tmp_path / "README.md").write_text("---\nlanguage: no\nlicense: 1.0\n---\n")
    assert read_base_card(tmp_path) == BaseCard("1.0", language=("no",))


def test_a_name_cannot_break_out_of_the_metadata() -> None:
    name = 'a"\nlicense: mit\n---'
    assert ModelCard(card_of(adaptation=name, base_model="hf://org/x: [y@abc")).data.license is None


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (
            BaseCard(model_type="llama", transformers_version="4.31.0"),
            "Needs transformers 4.57 or later: that version knows `llama`, and none before it was tried.",
        ),
        (
            BaseCard(model_type="qwen3_5_text", transformers_version="5.4.0"),
            f"Needs a transformers that knows `qwen3_5_text`, which 4.57 does not; trained with {INSTALLED}, and none"
            " before it was tried. The base model's configuration was written by 5.4.0.",
        ),
        (
            BaseCard(),
            f"Trained with transformers {INSTALLED}; the version that the base model needs is not known.",
        ),
    ],
)
def test_the_card_says_which_transformers_its_architecture_needs(base: BaseCard, sentence: str) -> None:
    assert f"## Use\n\n{sentence}\n\n```python" in model_card(publish_config("hf://org/clinical"), base)


def test_the_architecture_is_read_from_the_base_models_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi", "transformers_version": "4.40.0"}')
    base = read_base_card(tmp_path)
    assert (base.model_type, base.transformers_version) == ("phi", "4.40.0")
    (tmp_path / "config.json").write_text('{"model_type": "phi`](x)", "transformers_version": 4}')
    assert read_base_card(tmp_path) == BaseCard()


def test_the_card_says_how_to_load_the_model_and_what_it_was_measured_with() -> None:
    card = card_of(context_length_tokens=4096)
    assert 'name = "org/clinical"\n' in card
    for destination in (
        "file:///srv/models/clinical-2",
        "s3://models/clinical-2/",
        "pvc://claim/a/clinical-2",
    ):
        of_folder = model_card(publish_config(destination))
        assert 'name = "./clinical-2"  # the folder of this file\n' in of_folder
    assert "Each token has at most 4,096 tokens before it." in card
    assert "apply_chat_template" not in card
    assert "apply_chat_template" in card_of(fine_tuned=True, sft_examples=7)
