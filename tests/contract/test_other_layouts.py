"""Folders that are no model are told by the names in them; a model is never taken for something else."""

from __future__ import annotations

import pytest

from dapt_contract.inputs.other_layouts import other_layout

MODEL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
WEIGHTS = ["model.safetensors"]
SHARDS = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
]


@pytest.mark.parametrize(
    "names",
    [
        [],
        [*MODEL, *WEIGHTS],
        [*MODEL, *SHARDS],
        [*MODEL, *WEIGHTS, "optimizer.pt", "scheduler.pt", "trainer_state.json", "global_step500", "latest"],
        [*MODEL, *WEIGHTS, "model.onnx", "tf_model.h5", "original", "adapter_config.json"],
        [*MODEL, *WEIGHTS, "model.Q4_K_M.gguf"],
        ["model.Q4_K_M.gguf"],
        ["model.Q4_K_M.gguf", "tokenizer.json"],
        [*MODEL, "pytorch_model.bin", "optimizer.pt"],  # its weights are refused for being pickled
        ["tokenizer.json", *WEIGHTS],  # without its config.json, which is named
    ],
    ids=str,
)
def test_what_may_be_a_model_is_no_other_layout(names: list[str]) -> None:
    assert other_layout(names) == ""


@pytest.mark.parametrize(
    ("names", "finding"),
    [
        (["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"], "an adapter of PEFT without its base"),
        (["config.json", "adapter_config.json", "adapter_model.safetensors"], "an adapter of PEFT without its base"),
        (["model_index.json", "unet", "vae", "text_encoder"], "a pipeline of diffusers"),
        ([*MODEL, "m.Q4_K_M.gguf", "m.Q8_0.gguf"], "its weights are GGUF alone; name the file: .../m.Q4_K_M.gguf"),
        ([*MODEL, "global_step500", "latest", "zero_to_fp32.py"], "a checkpoint of DeepSpeed"),
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"], "a checkpoint of DeepSpeed"),
        ([".metadata", "__0_0.distcp"], "a checkpoint of torch in parts"),
        (["checkpoint-500", "checkpoint-1000"], "a folder of checkpoints; give one of them: .../checkpoint-1000"),
        ([*MODEL, "optimizer.pt", "trainer_state.json"], "the state of a trainer without weights"),
        (["params.json", "consolidated.00.pth", "tokenizer.model"], "weights in the layout of the model's authors"),
        ([*MODEL, "tf_model.h5"], "weights for another library alone (tf_model.h5)"),
        (["tokenizer.json", "tokenizer_config.json"], "a tokenizer without a model"),
    ],
    ids=str,
)  # fmt: skip
def test_another_layout_is_named_with_what_to_give(names: list[str], finding: str) -> None:
    text = other_layout(names)
    assert text.startswith(finding)
    assert "give" in text or "name the file" in text
