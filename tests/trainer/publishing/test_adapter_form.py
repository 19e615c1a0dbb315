"""Tests output.form adapter: PEFT puts what is published on the base model and gets the merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dapt_contract.stages.common import Member, ModelReference
from dapt_contract.stages.publish import AdapterForm, PublishConfig
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.loading.load_folder import load_folder
from dapt_trainer.modeling.save_weights import save_weights
from dapt_trainer.stages import publish
from support.card_builders import publish_config
from support.toy_families import make_family_model
from support.toy_training import FILTERS, make_context, make_model
from support.written import load_recipe

PEFT_WARNS = (
    "ignore:fan_in_fan_out is set to False",
    "ignore:The following rank_pattern keys",
    "ignore:The following alpha_pattern keys",
)
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in (*FILTERS, *PEFT_WARNS))]
IDS = torch.arange(1, 20)[None]
LAST_ROWS = {"model.embed_tokens": [258, 259]}
BLEND = ModelReference(
    weights="model",
    adapters=("one", "two"),
    averaged_with=(Member(weights="model", adapters=("two",)),),
    interpolation=0.8,
    tuned=("three",),
)


def make_adapter(work: Path, name: str, seed: int, *, folder: str = "model", **settings: Any) -> None:
    config = PeftLoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | settings))
    config.task_type = "CAUSAL_LM"
    adapted = get_peft_model(load_folder(work, folder, torch.float32), config)
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_weights(adapted, None, work / name)  # type: ignore[arg-type]  # an adapter has no tokenizer


def make_adapters(work: Path, **settings: Any) -> None:
    make_adapter(work, "one", 1, **settings)
    make_adapter(work, "two", 2, r=2, use_rslora=True, **settings)
    make_adapter(work, "three", 3, r=3)


def published(work: Path, recipe: ModelReference, **changes: Any) -> Path:
    """The folder of the adapter, published by the stage."""
    settings: PublishConfig = publish_config(
        f"file://{work}/out", model=recipe, adapter=AdapterForm(recipe=recipe), **changes
    )
    publish.run(settings, make_context(work, work / "scratch", settings, kind="publish"))
    return work / "out"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model.eval()(IDS).logits)


def require_same_outputs(work: Path, recipe: ModelReference, out: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    before = logits(base)
    wanted = logits(load_recipe(work, recipe))
    assert torch.allclose(logits(PeftModel.from_pretrained(base, out)), wanted, atol=1e-4)
    assert not torch.allclose(before, wanted, atol=1e-2)


@pytest.mark.parametrize("rows", [None, LAST_ROWS], ids=["", "rows"])
def test_a_blend_of_adapters_is_published_as_one_adapter(tmp_path: Path, rows: Any) -> None:
    make_model(tmp_path / "model")
    make_adapters(tmp_path, trainable_token_indices=rows)
    out = published(tmp_path, BLEND)
    require_same_outputs(tmp_path, BLEND, out)
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4 + 2 + 2 + 3, 4 + 2 + 2 + 3)
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/base", "abc")
    assert not (out / "config.json").exists()
    assert not (out / "model.safetensors").exists()
    assert len(AutoTokenizer.from_pretrained(out)) == 257


def test_rows_of_new_tokens_come_with_the_adapter(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    grown.resize_token_embeddings(264)
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "grown")
    grown.save_pretrained(tmp_path / "grown")
    rows = {"model.embed_tokens": [260, 261, 262, 263]}
    make_adapter(tmp_path, "one", 1, folder="grown", trainable_token_indices=rows)
    recipe = ModelReference(weights="grown", adapters=("one",), origin="grown", interpolation=0.5)
    out = published(tmp_path, recipe)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    base.resize_token_embeddings(264)
    found = logits(PeftModel.from_pretrained(base, out))
    assert torch.allclose(found, logits(load_recipe(tmp_path, recipe)), atol=1e-4)
    assert "    model.resize_token_embeddings(len(tokenizer))\n" in (out / "README.md").read_text()


def test_adapters_of_a_mixture_are_combined_expert_by_expert(tmp_path: Path) -> None:
    make_family_model(tmp_path / "model", "Mixtral")
    make_adapters(tmp_path)
    require_same_outputs(tmp_path, BLEND, published(tmp_path, BLEND))


def test_a_single_adapter_is_published_as_it_was_trained(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapters(tmp_path)
    recipe = ModelReference(weights="model", adapters=("two",))
    out = published(tmp_path, recipe)
    require_same_outputs(tmp_path, recipe, out)
    files = [folder / "adapter_model.safetensors" for folder in (out, tmp_path / "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_publishing_an_adapter_again_gives_the_same_files(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapters(tmp_path)
    manifests = [(published(tmp_path, BLEND) / "dapt.json").read_bytes() for _ in range(2)]
    assert manifests[0] == manifests[1]


def test_the_card_of_an_adapter_loads_it_on_its_base_model(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapters(tmp_path)
    out = published(tmp_path, BLEND)
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", "org/base")
    code = card.text.split("```python\n")[1].split("```")[0]
    assert 'base = "org/base"\n' in code
    assert 'from_pretrained(base, revision="abc", dtype="auto")' in code
    assert "resize_token_embeddings" not in code
    here = code.replace('"org/base"', repr(str(tmp_path / "model"))).replace('"./out"', repr(str(out)))
    names: dict[str, Any] = {}
    exec(here.replace(', revision="abc"', "").replace("max_new_tokens=100", "max_new_tokens=1"), names)
    assert isinstance(names["model"], PeftModel)
    assert names["model"].generation_config.max_new_tokens == 8


def test_weights_of_their_own_are_no_adapter(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_model(tmp_path / "full", seed=2)
    make_adapter(tmp_path, "one", 1)
    with pytest.raises(InputError) as caught:
        published(tmp_path, ModelReference(weights="full", adapters=("one",)))
    assert str(caught.value) == (
        f"{tmp_path}/full: has weights of its own, and an adapter on the base model is to be published; write"
        " output.form: merged"
    )
