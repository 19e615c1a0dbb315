"""The tensors of a base model are those of its architecture, or it is refused with their names, before it is loaded."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dapt_contract.stages.common import ModelReference
from dapt_trainer.data.base_model.check import check_base_model
from dapt_trainer.data.base_model.complete import comparison_of, completeness_problems
from dapt_trainer.data.base_model.facts import read_tokenizer
from dapt_trainer.digests import weights_digest
from dapt_trainer.errors import InputError
from support.toy_families import FAMILIES, make_family_model
from support.toy_training import FILTERS

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]

Tensors = dict[str, np.ndarray]


def configured(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def rewritten(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def problems(folder: Path) -> list[str]:
    return completeness_problems(comparison_of(folder), "toy")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_complete_model_of_each_family_is_accepted(tmp_path: Path, family: str) -> None:
    make_family_model(tmp_path, family)
    assert problems(tmp_path) == []
    assert comparison_of(tmp_path).embedding_rows == 260


def test_a_head_that_no_file_holds_is_named_by_prepare(tmp_path: Path, model: Path) -> None:
    """The files were saved while the head was tied."""
    configured(model, tie_word_embeddings=False)
    tokenizer = read_tokenizer(model, "file:///base")
    with pytest.raises(InputError) as caught:
        check_base_model(model, tokenizer, "file:///base", lambda: None)
    assert list(caught.value.problems) == [
        "spec.model.source: file:///base: no file holds 1 tensor (lm_head.weight) of LlamaForCausalLM, which would start "
        "from random numbers; use a complete checkpoint, or correct config.json (tie_word_embeddings, num_hidden_layers)"
    ]
    configured(model, tie_word_embeddings=True)
    check_base_model(model, tokenizer, "file:///base", lambda: None)


def test_missing_unexpected_and_mismatched_tensors_are_all_named(tmp_path: Path) -> None:
    make_family_model(tmp_path, "Qwen3")

    def change(tensors: Tensors) -> Tensors:
        tensors["model.layers.0.mlp.w1.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")  # renamed
        tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((7, 32), np.float32)
        return tensors

    rewritten(tmp_path, change)
    name = "Qwen3ForCausalLM"
    assert problems(tmp_path) == [
        f"spec.model.source: toy: no file holds 1 tensor (model.layers.0.mlp.up_proj.weight) of {name}, which would start "
        "from random numbers; use a complete checkpoint, or correct config.json (tie_word_embeddings, num_hidden_layers)",
        f"spec.model.source: toy: its files hold 1 tensor (model.layers.0.mlp.w1.weight) that {name} has not, which would "
        "be dropped; correct config.json, or convert the checkpoint to this architecture",
        "spec.model.source: toy: its files hold 1 tensor (model.layers.1.mlp.up_proj.weight (stored 7x32, expected "
        f"64x32)) in other shapes than {name} has by config.json; correct config.json, or use the checkpoint that belongs "
        "to it",
    ]


def test_more_or_fewer_layers_than_configured_are_named(tmp_path: Path) -> None:
    make_family_model(tmp_path, "Llama")
    configured(tmp_path, num_hidden_layers=3)
    assert "no file holds 9 tensors (model.layers.2." in problems(tmp_path)[0]
    configured(tmp_path, num_hidden_layers=1)
    assert "its files hold 9 tensors (model.layers.1." in problems(tmp_path)[0]


def test_harmless_extra_tensors_are_accepted(tmp_path: Path) -> None:
    """A copy of a tied head, and the frequencies that old checkpoints store."""
    make_family_model(tmp_path, "Qwen2")

    def change(tensors: Tensors) -> Tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        return tensors

    rewritten(tmp_path, change)
    assert problems(tmp_path) == []


def test_a_tied_head_with_other_values_is_named(tmp_path: Path) -> None:
    make_family_model(tmp_path, "Qwen2")
    rewritten(
        tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    )
    assert problems(tmp_path) == [
        "spec.model.source: toy: config.json ties 1 tensor (lm_head.weight) to the embedding, but its files hold other "
        "values; write tie_word_embeddings: false into config.json if these are meant"
    ]


def test_a_folder_that_would_get_random_tensors_is_never_loaded(tmp_path: Path) -> None:
    from dapt_trainer.modeling.loading.load_folder import load_model

    make_family_model(tmp_path / "model", "Llama")
    before = weights_digest(tmp_path / "model")
    rewritten(tmp_path / "model", lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    with pytest.raises(InputError) as caught:
        load_model(tmp_path, ModelReference(weights="model"), precision="fp32")
    assert str(caught.value) == (
        f"{tmp_path}/model: its tensors are not those of LlamaForCausalLM: 1 missing (lm_head.weight); correct "
        "config.json, or use a complete checkpoint"
    )
    assert weights_digest(tmp_path / "model") != before


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_the_digest_covers_every_file_that_is_loaded(tmp_path: Path, name: str) -> None:
    make_family_model(tmp_path, "Llama")
    before = weights_digest(tmp_path)
    (tmp_path / "facts.json").write_text("{}")
    (tmp_path / "README.md").write_text("ours")
    assert weights_digest(tmp_path) == before
    (tmp_path / name).write_text((tmp_path / name).read_text() + " ")
    assert weights_digest(tmp_path) != before


def test_an_architecture_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    make_family_model(tmp_path, "Llama")
    configured(tmp_path, architectures=["Qwen2ForCausalLM"])
    assert problems(tmp_path) == [
        "spec.model.source: toy: config.json names the architecture Qwen2ForCausalLM, but its model_type loads LlamaForCausalLM, so programs would compute different things from it; correct architectures or model_type"
    ]


def test_masks_that_earlier_versions_stored_are_accepted(tmp_path: Path) -> None:
    make_family_model(tmp_path, "GPT2")

    def change(tensors: Tensors) -> Tensors:
        masks: Tensors = {
            "h.0.attn.masked_bias": np.array([-1e4], np.float32),
            "h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32),
        }
        return {name.removeprefix("transformer."): value for name, value in tensors.items()} | masks

    rewritten(tmp_path, change)
    assert problems(tmp_path) == []
