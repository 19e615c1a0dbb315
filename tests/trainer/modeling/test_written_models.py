"""Tests models that are written down: every field of a recipe applies exactly, and nothing but a tensor is held."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dapt_contract.stages.common import LoraConfig, Member, ModelReference
from dapt_trainer.digests import reference_digest, weights_digest
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.modeling.save_weights import save_weights
from support.toy_training import FILTERS, make_model
from support.written import load_recipe

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
IDS = torch.arange(1, 25)[None]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of one shape and three adapters."""
    work = tmp_path_factory.mktemp("work")
    for seed, name in enumerate(("model", "full-1", "full-2")):
        make_model(work / name, seed=seed)
    for seed in (1, 2, 3):
        make_adapter(work, f"adapter-{seed}", seed)
    return work


def make_adapter(work: Path, name: str, seed: int) -> None:
    model = with_lora(
        load_model(work, ModelReference(weights="model"), precision="fp32"),
        LoraConfig(rank=4, alpha=8),
        seed=seed,
    )
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_weights(model, None, work / name)  # type: ignore[arg-type]  # an adapter has no tokenizer


def reference(**fields: Any) -> ModelReference:
    return ModelReference(**({"weights": "model"} | fields))


def tensors(work: Path, **fields: Any) -> Tensors:
    model = load_recipe(work, reference(**fields))
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def equal(one: Tensors, other: Tensors, tolerance: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return all(float((one[name] - other[name]).abs().max()) <= tolerance for name in one)


def delta(work: Path, adapter: str) -> Tensors:
    """What an adapter adds, computed from its file alone: alpha / rank x B A (Hu et al. 2021)."""
    from safetensors.torch import load_file

    settings = json.loads((work / adapter / "adapter_config.json").read_text())
    stored = load_file(work / adapter / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / settings["r"]
    names = [name.removesuffix(".lora_A.weight") for name in stored if name.endswith(".lora_A.weight")]
    assert len(names) == 14  # seven linear layers in each of two blocks
    return {
        f"{name.removeprefix('base_model.model.')}.weight": scale
        * stored[f"{name}.lora_B.weight"]
        @ stored[f"{name}.lora_A.weight"]
        for name in names
    }


def plus(one: Tensors, other: Tensors) -> Tensors:
    return {name: value + other[name] if name in other else value for name, value in one.items()}


def test_a_mean_is_the_mean_of_every_parameter(work: Path) -> None:
    parts = [tensors(work, weights=name) for name in ("model", "full-1", "full-2")]
    mean = tensors(work, averaged_with=(Member(weights="full-1"), Member(weights="full-2")))
    assert equal(mean, {name: (parts[0][name] + parts[1][name] + parts[2][name]) / 3 for name in parts[0]})


def test_an_interpolation_is_between_origin_and_model(work: Path) -> None:
    origin, model = tensors(work, weights="full-2"), tensors(work, weights="full-1")
    on_the_way = tensors(work, weights="full-1", origin="full-2", interpolation=0.3)
    assert equal(on_the_way, {name: origin[name] + 0.3 * (model[name] - origin[name]) for name in origin})
    assert equal(tensors(work, weights="full-1", origin="full-2", interpolation=0.0), origin)
    assert equal(tensors(work, weights="full-1", origin="full-2", interpolation=1.0), model)


def test_adapters_are_merged_in_their_order(work: Path) -> None:
    base = tensors(work)
    expected = plus(plus(base, delta(work, "adapter-1")), delta(work, "adapter-2"))
    assert equal(tensors(work, adapters=("adapter-1", "adapter-2")), expected, 1e-7)


@pytest.mark.parametrize("share", [0.25, 0.6, 0.8])
def test_interpolating_a_lora_checkpoint_scales_its_adapter(work: Path, share: float) -> None:
    scaled = {name: share * value for name, value in delta(work, "adapter-1").items()}
    found = tensors(work, adapters=("adapter-1",), interpolation=share)
    assert equal(found, plus(tensors(work), scaled), 1e-6)
    assert not equal(found, tensors(work, adapters=("adapter-1",)), 1e-3)


def test_all_fields_apply_in_their_order(work: Path) -> None:
    """Tuned adapters come after the interpolation: they are not scaled."""
    base = tensors(work)
    first = plus(base, delta(work, "adapter-1"))
    second = plus(tensors(work, weights="full-1"), delta(work, "adapter-2"))
    mean = {name: (first[name] + second[name]) / 2 for name in base}
    origin = tensors(work, weights="full-2")
    between = {name: origin[name] + 0.6 * (mean[name] - origin[name]) for name in base}
    found = tensors(
        work,
        adapters=("adapter-1",),
        averaged_with=(Member(weights="full-1", adapters=("adapter-2",)),),
        interpolation=0.6,
        origin="full-2",
        tuned=("adapter-3",),
    )
    assert equal(found, plus(between, delta(work, "adapter-3")), 1e-6)


def test_tied_weights_stay_tied(work: Path) -> None:
    model = load_recipe(
        work,
        reference(adapters=("adapter-1",), averaged_with=(Member(weights="full-1"),), interpolation=0.5),
        precision="bf16",
    )
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.isfinite(model(IDS).logits).all()


def test_weights_are_rounded_once_at_the_end(work: Path) -> None:
    fields = {"weights": "full-1", "origin": "full-2", "interpolation": 0.3}
    exact = tensors(work, **fields)
    rounded = load_recipe(work, reference(**fields), precision="bf16")
    assert all(torch.equal(value, exact[name].bfloat16()) for name, value in rounded.named_parameters())


def test_a_folder_with_other_tensor_names_is_read(work: Path, tmp_path: Path) -> None:
    """Some models on the hub were saved without their head's prefix."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(work / "model", tmp_path / "model")
    shutil.copytree(work / "full-1", tmp_path / "full-1")
    file = tmp_path / "full-1/model.safetensors"
    stored = load_file(file)
    save_file({name.removeprefix("model."): value for name, value in stored.items()}, file, {"format": "pt"})
    assert equal(
        tensors(tmp_path, origin="full-1", interpolation=0.4),
        tensors(work, origin="full-1", interpolation=0.4),
    )


def test_a_model_in_several_files_is_read(work: Path, tmp_path: Path) -> None:
    model = load_model(work, reference(weights="full-1"), precision="fp32")
    shutil.copytree(work / "model", tmp_path / "model")
    model.save_pretrained(tmp_path / "full-1", max_shard_size="40KB")
    assert len(list((tmp_path / "full-1").glob("*.safetensors"))) > 1
    assert equal(
        tensors(tmp_path, averaged_with=(Member(weights="full-1"),)),
        tensors(work, averaged_with=(Member(weights="full-1"),)),
    )


def resized(work: Path, folder: Path, rows: int) -> None:
    model = load_model(work, reference(), precision="fp32")
    model.resize_token_embeddings(rows)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"averaged_with": (Member(weights="grown"),)},
        {"origin": "grown", "interpolation": 0.5},
    ],
)
def test_other_vocabularies_are_refused_with_both_sizes(
    work: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    shutil.copytree(work / "model", tmp_path / "model")
    resized(work, tmp_path / "grown", 270)
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path, reference(**fields))
    assert str(caught.value) == (
        "model has a vocabulary of 260 tokens and grown one of 270: models of different vocabularies cannot be "
        "combined; where the tokenizer was extended, all of them, the origin included, come from model-extended"
    )


def test_an_untied_head_is_not_combined_with_a_tied_one(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "model", tmp_path / "model")
    shutil.copytree(work / "full-1", tmp_path / "full-1")
    config = tmp_path / "full-1/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path, reference(origin="full-1", interpolation=0.5))
    assert str(caught.value) == (
        "model ties its head to its embedding and full-1 has a head of its own: such models cannot be combined"
    )


def test_digests_name_parts_shares_and_order(work: Path) -> None:
    base, one, two = (weights_digest(work / name) for name in ("model", "adapter-1", "adapter-2"))
    assert reference_digest(work, reference()) == base
    chain = reference_digest(work, reference(adapters=("adapter-1", "adapter-2")))
    assert chain == hashlib.sha256(f"{base}\n{one}\n{two}".encode()).hexdigest()
    compose = [
        reference(),
        reference(adapters=("adapter-1",)),
        reference(adapters=("adapter-2", "adapter-1")),
        reference(adapters=("adapter-1", "adapter-2")),
        reference(averaged_with=(Member(weights="full-1"),)),
        reference(averaged_with=(Member(weights="full-2"),)),
        reference(averaged_with=(Member(weights="full-1"), Member(weights="full-2"))),
        reference(averaged_with=(Member(weights="full-2"), Member(weights="full-1"))),
        reference(averaged_with=(Member(weights="full-1", adapters=("adapter-1",)),)),
        reference(weights="full-1", interpolation=0.5),
        reference(weights="full-1", interpolation=0.6),
        reference(weights="full-1", interpolation=0.5, origin="full-2"),
        reference(weights="full-1", interpolation=0.5, tuned=("adapter-1",)),
    ]
    known: dict[str, str] = {}
    digests = [reference_digest(work, recipe, known) for recipe in compose]
    assert len(set(digests)) == len(compose)
    assert digests == [reference_digest(work, recipe) for recipe in compose]
    assert reference_digest(work, reference(interpolation=1.0, origin="full-2")) == base
    assert reference_digest(work, reference(adapters=("adapter-1",), tuned=("adapter-2",))) == chain


def test_a_missing_part_is_named(work: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(work, reference(tuned=("nowhere",)))
    assert str(caught.value) == f"{work}/nowhere: no adapter there (adapter_model.safetensors is missing)"
    with pytest.raises(InputError) as caught:
        load_recipe(work, reference(weights="full-1", interpolation=0.5, origin="nowhere"))
    assert str(caught.value) == (
        f"{work}/nowhere: no model there (config.json is missing); run prepare again"
    )
