"""Tests what is read from headers and file sizes without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from dapt_client.documents import absolute
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.model_shape import local_model
from dapt_operator.cli.inputs.source_sizes import source_problems, source_size
from support.model_headers import CONFIG, write_safetensors


def folder(tmp_path: Path, config: dict[str, object] = CONFIG) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_folder_is_read_from_its_headers(tmp_path: Path) -> None:
    path = folder(tmp_path)
    write_safetensors(path / "model-1.safetensors", a=[100, 8], b=[8, 8])
    write_safetensors(path / "model-2.safetensors", c=[3])
    facts = local_model(path)
    assert facts.parameters == 100 * 8 + 8 * 8 + 3
    assert (facts.architecture, facts.layers, facts.key_value_heads) == ("LlamaForCausalLM", 2, 2)
    assert (facts.tied_embeddings, facts.has_chat_template) == (True, False)


def test_without_weights_the_shape_is_counted(tmp_path: Path) -> None:
    # 2 layers x (attention 8x8x(2 + 2x2/4) + gated feed-forward 3x8x16) + tied embeddings 100x8
    assert local_model(folder(tmp_path)).parameters == 2 * (192 + 384) + 800


def test_older_names_of_settings_are_understood(tmp_path: Path) -> None:
    old = {"model_type": "gpt2", "n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": 50}
    facts = local_model(folder(tmp_path, old))
    assert (facts.hidden_size, facts.layers, facts.attention_heads, facts.key_value_heads) == (8, 3, 2, 2)
    assert (facts.intermediate_size, facts.max_positions, facts.architecture) == (32, 64, "gpt2")


def gguf(path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        number("llama.embedding_length", 8),
        number("llama.block_count", 2),
        number("llama.context_length", 128),
        number("llama.feed_forward_length", 16),
        number("llama.attention.head_count", 4),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 3) + struct.pack("<3f", 0, 0, 0),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 3, 0, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "holds a list and not an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "digits"),
        ('{"num_hidden_layers": -3}', "which no model has"),
        ('{"vocab_size": 1e300}', "which no model has"),
    ],
    ids=["list", "deep", "long number", "negative", "absurd"],
)
def test_an_odd_configuration_is_named_in_a_sentence(tmp_path: Path, content: str, said: str) -> None:
    path = folder(tmp_path)
    (path / "config.json").write_text(content)
    with pytest.raises(UserError, match=said) as refused:
        local_model(path)
    assert str(refused.value).startswith(f"{path / 'config.json'}: ")


@pytest.mark.parametrize("names", ["Llama", {"a": 1}, []])
def test_an_odd_name_of_the_architecture_is_no_error(tmp_path: Path, names: object) -> None:
    assert local_model(folder(tmp_path, CONFIG | {"architectures": names})).architecture


def test_lists_of_lists_in_a_gguf_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    nested = struct.pack("<IQ", 9, 1) * 50_000
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + nested
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    with pytest.raises(UserError, match="a list in its header holds lists"):
        local_model(path)


def test_a_gguf_file_is_read_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf(path)
    facts = local_model(path)
    assert (facts.architecture, facts.parameters, facts.vocabulary_size) == ("llama", 24, 3)
    assert (facts.layers, facts.key_value_heads, facts.tied_embeddings) == (2, 4, True)
    assert facts.weights_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda path: None,
            "{path}: no such model; give a folder with config.json and safetensors, or one .gguf file",
        ),
        (
            lambda path: path.write_text("x"),
            "{path}: not a model; give a folder with config.json and safetensors, or one .gguf file",
        ),
        (
            lambda path: path.mkdir(),
            "{path}: no config.json; give the folder of a Hugging Face model, or a .gguf file",
        ),
    ],
)
def test_what_is_not_a_model_is_refused(tmp_path: Path, make, sentence: str) -> None:
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(UserError) as error:
        local_model(path)
    assert error.value.problems == (sentence.format(path=path),)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGML")
    with pytest.raises(
        UserError, match=r"not a GGUF file \(it does not begin with GGUF\); download the model again"
    ):
        local_model(path)
    path.write_bytes(b"GGUF\x03")
    with pytest.raises(UserError, match="not a GGUF file"):
        local_model(path)
    model = folder(tmp_path)
    (model / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(UserError, match=r"not a safetensors file \(its header is too long\)"):
        local_model(model)


def test_sources_are_sized_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x" * 400)
    (tmp_path / "b.jsonl.gz").write_bytes(b"x" * 100)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "c.txt").write_bytes(b"x" * 40)
    size = source_size(f"file://{tmp_path}/*.jsonl*")
    assert size is not None
    assert (size.files, size.size_bytes, size.tokens) == (2, 500, (400 + 300) // 4)
    whole = source_size(f"file://{tmp_path}")
    assert whole is not None
    assert whole.files == 3
    assert source_size("s3://bucket/x.jsonl") is None


def test_links_and_odd_names_are_sized_as_the_stages_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "my [v2] texts"
    (folder / "snap").mkdir(parents=True)
    (folder / "blob").write_bytes(b"x" * 400)
    (folder / "snap" / "a.jsonl").symlink_to("../blob")
    (folder / "snap" / "b.jsonl").symlink_to("a.jsonl")
    for pattern in ("snap", "snap/*.jsonl", "**/*.jsonl", "snap/b.jsonl"):
        size = source_size(f"file://{folder}/{pattern}")
        assert size is not None
        assert (size.files, size.size_bytes) == (1, 400), pattern
    (folder / "snap" / "c.jsonl").symlink_to("gone")
    assert source_problems(f"file://{folder}/snap") == [
        f"{folder}/snap/c.jsonl: a link to gone, which does not exist; fetch the file (by the hub's client, "
        "dvc pull or git annex get), or remove the link"
    ]
    assert source_problems(f"file://{folder}/blob") == [
        f"file://{folder}/blob has no file of a known type (the first is {folder}/blob); accepted are "
        ".jsonl, .ndjson or .json (one record a line; .json also one array), .parquet, .txt, .md, each but .parquet "
        "also .gz or .zst"
    ]


@pytest.mark.parametrize("name", ["my projects", "proj[v2]", "what?", "a*b", "50%20#", "{x}", "ü"])
def test_the_manifests_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Only what the user wrote has wildcards; the model's folder has none."""
    for folder in (name, "projv", "whatx", "aXb"):
        (tmp_path / folder / "text").mkdir(parents=True)
        (tmp_path / folder / "text" / "d.jsonl").write_bytes(b"x" * 4)
    document = {
        "spec": {
            "model": {"source": "file://base"},
            "corpus": {"domain": [{"source": "file://text/*.jsonl"}]},
        }
    }
    spec = absolute(document, tmp_path / name / "my.yaml")["spec"]
    size = source_size(spec["corpus"]["domain"][0]["source"])
    assert size is not None
    assert size.files == 1
    assert spec["model"]["source"] == f"file://{tmp_path}/{name}/base"


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert source_problems(f"file://{tmp_path}/none.jsonl") == [
        f"no file matches file://{tmp_path}/none.jsonl; check the path, which starts at the manifest's folder"
    ]
    assert source_problems(f"file://{tmp_path}/empty.jsonl") == [
        f"file://{tmp_path}/empty.jsonl is empty; fill it, or remove the source"
    ]
    assert source_problems("s3://bucket/x.jsonl") == []


def test_a_folder_with_one_gguf_file_is_a_model(tmp_path: Path) -> None:
    gguf(tmp_path / "base.gguf")
    assert local_model(tmp_path).architecture == "llama"
    gguf(tmp_path / "other.gguf")
    with pytest.raises(UserError) as error:
        local_model(tmp_path)
    assert error.value.problems == (
        f"{tmp_path}: has 2 GGUF files (base.gguf, other.gguf); name one of them",
    )
