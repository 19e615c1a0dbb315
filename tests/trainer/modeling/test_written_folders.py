"""Tests the folders of written models: PEFT's arithmetic, names of files, shards, digests, memory, and full disks."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from dapt_contract.stages.common import Member, ModelReference
from dapt_trainer.digests import weights_digest
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InfrastructureError, InputError
from dapt_trainer.modeling.loading.load_folder import load_folder, load_model
from dapt_trainer.modeling.save_weights import save_weights
from dapt_trainer.modeling.written_models.for_stages import WrittenModels
from dapt_trainer.modeling.written_models.tensor_folders import LoadedFolder, TensorFolder
from dapt_trainer.modeling.written_models.write_down import write_down
from support.toy_families import make_family_model
from support.toy_training import FILTERS, make_context, make_model, pretrain_config
from support.written import load_recipe

PEFT_WARNS = (
    "ignore:fan_in_fan_out is set to False",
    "ignore:Model (has|with) `tie_word_embeddings=True`",
    "ignore:The following rank_pattern keys",
    "ignore:The following alpha_pattern keys",
)
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in (*FILTERS, *PEFT_WARNS))]
FP32 = torch.float32
ADAPTED = ModelReference(weights="model", adapters=("adapter",))


def silent() -> None:
    """Heartbeats of no interest."""


def make_adapter(work: Path, seed: int = 1, dtype: Any = FP32, **settings: Any) -> None:
    """An adapter of `model` whose values are all random, in `adapter`."""
    model = load_folder(work, "model", FP32)
    config = LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | settings))
    adapted = get_peft_model(model, config)
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_weights(adapted, None, work / "adapter")  # type: ignore[arg-type]  # an adapter has no tokenizer
    file = work / "adapter/adapter_model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, {"format": "pt"})


def by_peft(work: Path) -> dict[str, torch.Tensor]:
    """The parameters as PEFT merges them."""
    model = load_folder(work, "model", FP32)
    merged = PeftModel.from_pretrained(model, work / "adapter").merge_and_unload()
    return {name: value.detach() for name, value in merged.named_parameters()}


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


def require_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"dtype": torch.bfloat16},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["norm"]},
        {"trainable_token_indices": {"model.embed_tokens": [3, 7]}},
        {"trainable_token_indices": [5, 6]},
    ],
    ids=["plain", "rslora", "bf16", "embedding", "whole-module", "rows-of-a-matrix", "rows"],
)
def test_adapters_are_merged_as_by_peft_to_the_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    make_model(tmp_path / "model")
    make_adapter(tmp_path, **settings)
    expected = by_peft(tmp_path)
    base = parameters(load_folder(tmp_path, "model", FP32))
    assert any(not torch.equal(base[name], expected[name]) for name in base)
    require_equal(parameters(load_recipe(tmp_path, ADAPTED)), expected)


@pytest.mark.parametrize("family", ["GPT2", "Mixtral", "Qwen3Moe", "Falcon", "GPTNeoX", "Gemma3Text"])
def test_adapters_of_a_family_are_merged_as_by_peft_to_the_bit(tmp_path: Path, family: str) -> None:
    """GPT-2 stores its matrices the other way round; mixtures store each expert on its own."""
    make_family_model(tmp_path / "model", family)
    make_adapter(tmp_path, target_modules="all-linear")
    expected = by_peft(tmp_path)
    written = load_recipe(tmp_path, ADAPTED)
    require_equal(parameters(written), expected)
    assert set(load_file(tmp_path / "written/recipe/model.safetensors")) == set(
        load_file(tmp_path / "model/model.safetensors")
    )


@pytest.mark.parametrize("family", ["Mixtral", "GPT2"])
def test_means_of_a_family_are_means_of_what_is_loaded(tmp_path: Path, family: str) -> None:
    for seed, name in enumerate(("model", "one", "two")):
        make_family_model(tmp_path / name, family, seed=seed)
    base, one, two = (parameters(load_folder(tmp_path, name, FP32)) for name in ("model", "one", "two"))
    recipe = ModelReference(weights="one", averaged_with=(Member(weights="two"),), interpolation=0.3)
    means = {name: (one[name] + two[name]) / 2 for name in one}
    expected = {name: base[name] + 0.3 * (means[name] - base[name]) for name in base}
    require_equal(parameters(load_recipe(tmp_path, recipe)), expected)


def test_every_parameter_of_a_mixture_can_be_read_by_its_own_name(tmp_path: Path) -> None:
    make_family_model(tmp_path / "model", "Mixtral")
    expected = parameters(load_folder(tmp_path, "model", FP32))
    assert not set(expected) <= set(TensorFolder(tmp_path, "model").tensors)
    source = LoadedFolder(tmp_path, "model")
    require_equal({name: source.weight(name) for name in source.tensors}, expected)


def test_a_kind_of_adapter_that_is_not_merged_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapter(tmp_path, use_dora=True)
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path, ADAPTED)
    assert str(caught.value).startswith(f"{tmp_path}/adapter: use_dora is True; ")
    assert str(caught.value).endswith(
        ": only LoRA adapters of weights, trained rows and whole modules are merged"
    )


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapter(tmp_path)
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    save_file(tensors | {name: torch.zeros(4, 16)}, file, {"format": "pt"})
    with pytest.raises(InputError, match="the adapter belongs to another model"):
        load_recipe(tmp_path, ADAPTED)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_once_to_the_base_models_format(tmp_path: Path, stored: torch.dtype) -> None:
    make_model(tmp_path / "full")
    load_folder(tmp_path, "full", stored).save_pretrained(tmp_path / "model")
    make_adapter(tmp_path)
    exact = by_peft(tmp_path)
    folder = tmp_path / "written"
    write_down(tmp_path, ADAPTED, folder, heartbeat=silent)
    found = load_file(folder / "model.safetensors")
    assert {value.dtype for value in found.values()} == {stored}
    require_equal(found, {name: exact[name].to(stored) for name in found})


def test_weights_that_fp16_cannot_hold_are_written_in_bf16(tmp_path: Path) -> None:
    make_model(tmp_path / "full")
    load_folder(tmp_path, "full", torch.float16).save_pretrained(tmp_path / "model")
    model = load_folder(tmp_path, "full", FP32)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    model.save_pretrained(tmp_path / "large")
    written = write_down(tmp_path, ModelReference(weights="large"), tmp_path / "written", heartbeat=silent)
    found = load_file(tmp_path / "written/model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "written/config.json").read_text())["dtype"] == "bfloat16"
    assert (
        float(load_model(tmp_path, written.reference, precision="fp32").model.norm.weight[0].detach()) > 9e5
    )


def test_the_folder_is_in_shards_with_an_index_tokenizer_and_digest(tmp_path: Path) -> None:
    make_model(tmp_path / "model", chat_template=True)
    make_adapter(tmp_path)
    folder = tmp_path / "written"
    beats: list[int] = []
    written = write_down(tmp_path, ADAPTED, folder, heartbeat=lambda: beats.append(1), shard_bytes=20_000)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    # The embedding alone is larger, and has a file of its own.
    assert sum((folder / name).stat().st_size > 21_000 for name in names) == 1
    assert written.weights_digest == weights_digest(folder)
    assert written.reference == ModelReference(weights="written")
    assert len(beats) > len(names)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    require_equal(parameters(load_model(tmp_path, written.reference, precision="fp32")), by_peft(tmp_path))


def test_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapter(tmp_path)

    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InfrastructureError, match=r"No space left on device; enlarge the volume"):
        write_down(tmp_path, ADAPTED, tmp_path / "written", heartbeat=full)
    assert not list(tmp_path.glob("written*"))


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapter(tmp_path)
    for name in ("written", "written.partial"):
        shutil.copytree(tmp_path / "model", tmp_path / name)
        (tmp_path / name / "model-00001-of-00009.safetensors").write_bytes(b"half")
    written = write_down(tmp_path, ADAPTED, tmp_path / "written", heartbeat=silent)
    assert sorted(path.name for path in tmp_path.glob("written*")) == ["written"]
    assert not list((tmp_path / "written").glob("*-of-*"))
    assert written.weights_digest == weights_digest(tmp_path / "written")


def make_deep_model(folder: Path, seed: int) -> None:
    """A model that is many times its largest weight."""
    make_model(folder, seed=seed)
    config = LlamaConfig.from_pretrained(folder)
    config.num_hidden_layers = 8
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in self._tensors(result):
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if tensor.device.type == "cpu" and key and key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                weakref.finalize(tensor, self._sizes.pop, key, None)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result

    def _tensors(self, result: Any) -> Iterator[torch.Tensor]:
        for value in result if isinstance(result, list | tuple) else (result,):
            if isinstance(value, torch.Tensor):
                yield value


@pytest.mark.parametrize(
    "recipe",
    [
        {"interpolation": 0.5, "origin": "other", "tuned": ("adapter",)},
        {"averaged_with": tuple(Member(weights="other", adapters=("adapter",)) for _ in range(4))},
    ],
    ids=["interpolation", "mean"],
)
def test_memory_is_that_of_three_copies_of_the_largest_weight(tmp_path: Path, recipe: dict[str, Any]) -> None:
    for seed, name in enumerate(("model", "other")):
        make_deep_model(tmp_path / name, seed)
    make_adapter(tmp_path)
    sizes = [value.nbytes for value in load_file(tmp_path / "model/model.safetensors").values()]
    assert sum(sizes) > 8 * max(sizes)
    with LiveBytes() as live:
        write_down(
            tmp_path,
            ADAPTED.model_copy(update=recipe),
            tmp_path / "written",
            heartbeat=silent,
            shard_bytes=20_000,
        )
    assert max(sizes) < live.peak < 3.5 * max(sizes)


def stage_of_try(work: Path, number: int) -> tuple[Any, WrittenModels]:
    context = make_context(work, work / "scratch", pretrain_config())
    run = context.stage.run.model_copy(update={"try_number": number})
    context = replace(context, stage=context.stage.model_copy(update={"run": run}))
    return context, WrittenModels(context, Ranks(0, 0, 1, torch.device("cpu")))


def test_a_stage_gets_a_folder_for_a_recipe_and_a_plain_model_as_it_is(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapter(tmp_path)
    context, written = stage_of_try(tmp_path, 1)
    plain = ModelReference(weights="model")
    assert written.plain(plain) is plain
    assert not context.try_folder.exists()
    found = written.plain(ADAPTED)
    assert found.weights == f"{context.try_folder.relative_to(tmp_path)}/written"
    before = (tmp_path / found.weights / "model.safetensors").stat()
    assert written.plain(ADAPTED) == found
    assert (tmp_path / found.weights / "model.safetensors").stat() == before
    written.require_unchanged()
    (tmp_path / found.weights / "config.json").write_text("{}")
    with pytest.raises(InfrastructureError, match="its weights were written to while they were read"):
        written.require_unchanged()


def test_a_stage_removes_what_earlier_runs_left_and_nothing_of_a_newer_one(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_adapter(tmp_path)
    contexts = [stage_of_try(tmp_path, number)[0] for number in (1, 2, 3)]
    for context in contexts:
        for name in ("written", "written.partial"):
            (context.try_folder / name).mkdir(parents=True)
    stage_of_try(tmp_path, 2)[1].plain(ADAPTED)
    left = [sorted(path.name for path in context.try_folder.iterdir()) for context in contexts]
    assert left == [[], ["written"], ["written", "written.partial"]]


def test_a_recipe_is_never_loaded_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a recipe: write it down"):
        load_model(tmp_path, ADAPTED, precision="fp32")
