"""Tests adapters that a pod has altered: one sentence, in no time, whatever their settings and tensors are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dapt_trainer.errors import InputError
from dapt_trainer.modeling.written_models.adapters import open_adapter
from support.toy_training import make_model

pytestmark = pytest.mark.torch
LAYER = "model.layers.0.self_attn.q_proj"
EMBEDDING = "model.embed_tokens"
Files = tuple[dict[str, Any], dict[str, torch.Tensor]]
EVIL_PATTERN = "(a+)+" + "$"


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def adapter(skeleton: Any) -> Files:
    height, width = skeleton.get_parameter(f"{LAYER}.weight").shape
    settings: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    tensors = {
        f"base_model.model.{LAYER}.lora_A.weight": torch.ones(2, width),
        f"base_model.model.{LAYER}.lora_B.weight": torch.ones(height, 2),
    }
    return settings, tensors


def merged(folder: Path, skeleton: Any, files: Files) -> torch.Tensor:
    settings, tensors = files
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    stored = open_adapter(folder, skeleton)
    for name in (f"{LAYER}.weight", f"{EMBEDDING}.weight"):
        weight = stored.merge_into(name, torch.zeros(skeleton.get_parameter(name).shape))
        if weight.any():
            return weight
    raise AssertionError("nothing was changed")


def setting(**changes: Any) -> Callable[[Files], object]:
    return lambda files: files[0].update(changes)


def tensor(part: str, value: torch.Tensor) -> Callable[[Files], object]:
    return lambda files: files[1].update({f"base_model.model.{LAYER}.lora_{part}.weight": value})


def rows(indices: Any, value: torch.Tensor) -> Callable[[Files], object]:
    def change(files: Files) -> None:
        files[0]["trainable_token_indices"] = indices
        files[1][f"base_model.model.{EMBEDDING}.token_adapter.trainable_tokens_delta"] = value

    return change


def without_alpha(files: Files) -> None:
    del files[0]["lora_alpha"]


HOSTILE: dict[str, Callable[[Files], object]] = {
    "a pattern that takes for ever": setting(alpha_pattern={EVIL_PATTERN: 1}),
    "a pattern that is none": setting(alpha_pattern={"(": 1}),
    "a pattern of ranks that takes for ever": setting(rank_pattern={"(.*)*x": 1}),
    "a pattern with a line break": setting(alpha_pattern={"a\nb": 1}),
    "a long pattern": setting(alpha_pattern={"a" * 10**5: 1}),
    "patterns that are a list": setting(alpha_pattern=["q_proj"]),
    "an alpha that is a text": setting(lora_alpha="4"),
    "an alpha that is true": setting(lora_alpha=True),
    "an alpha without end": setting(lora_alpha=10**400),
    "an alpha that is no number": setting(lora_alpha=float("nan")),
    "an alpha of infinity": setting(alpha_pattern={"q_proj": float("inf")}),
    "no alpha": without_alpha,
    "a rank of zero": setting(r=0),
    "a rank below zero": setting(r=-4),
    "a rank of exabytes": setting(r=10**18),
    "a rank that is a list": setting(r=[2]),
    "a flag that is a text": setting(use_rslora="yes"),
    "a task with an escape": setting(task_type="\x1b[2J"),
    "a task that is an object": setting(task_type={"a": 1}),
    "layers that are an object": setting(target_modules={"a": 1}),
    "layers that are numbers": setting(target_modules=[1]),
    "a layer with a direction": setting(target_modules=["\u202ea"]),
    "code": setting(auto_mapping={"base_model_class": "A", "parent_library": "os"}),
    "another kind": setting(peft_type="PROMPT_TUNING"),
    "a list as kind": setting(peft_type=["LORA"]),
    "a vector as A": tensor("A", torch.ones(4)),
    "a number as B": tensor("B", torch.ones(())),
    "ranks that differ": tensor("B", torch.ones(64, 3)),
    "no ranks": lambda files: (tensor("A", torch.ones(0, 64))(files), tensor("B", torch.ones(64, 0))(files)),
    "another width": tensor("A", torch.ones(2, 7)),
    "another height": tensor("B", torch.ones(7, 2)),
    "a row before the first": rows([-1], torch.ones(1, 64)),
    "a row behind the last": rows([10**6], torch.ones(1, 64)),
    "a row without end": rows([10**30], torch.ones(1, 64)),
    "a row that is a text": rows({"embed_tokens": ["x"]}, torch.ones(1, 64)),
    "a row that is half": rows([0.5], torch.ones(1, 64)),
    "rows too many": rows([1, 2, 3], torch.ones(1, 64)),
    "rows of another width": rows([1], torch.ones(1, 7)),
    "rows that are a number": rows([1], torch.ones(())),
    "rows of another module": rows({"lm_head": [1]}, torch.ones(1, 64)),
}


def test_an_untouched_adapter_is_merged(skeleton: Any, tmp_path: Path) -> None:
    files = adapter(skeleton)
    setting(alpha_pattern={r"^model\.layers.0.self_attn.q_proj$": 8}, rank_pattern={r".*\.q_proj": 2})(files)
    assert merged(tmp_path, skeleton, files).unique().tolist() == [8.0]  # 2 ranks of 8 / 2


@pytest.mark.parametrize("name", HOSTILE)
def test_an_altered_adapter_is_refused_in_a_sentence(skeleton: Any, tmp_path: Path, name: str) -> None:
    files = adapter(skeleton)
    HOSTILE[name](files)
    if "row" in name:
        files[1].pop(f"base_model.model.{LAYER}.lora_A.weight")
        files[1].pop(f"base_model.model.{LAYER}.lora_B.weight")
    with pytest.raises(InputError) as caught:
        merged(tmp_path, skeleton, files)
    (sentence,) = caught.value.problems
    assert "\n" not in sentence
    assert len(sentence) < 700
    assert str(tmp_path) in sentence
