"""Recognizes folders that people give as a model and that are none, by the names in them alone."""

from __future__ import annotations

import re
from collections.abc import Collection

_OF_DEEPSPEED = re.compile(
    r"global_step\d+|zero_to_fp32\.py|(bf16_)?zero_pp_rank_.*|mp_rank_\d+_model_states\.pt"
)
_OF_TORCH = re.compile(r"\.metadata|.*\.distcp|pytorch_model_fsdp_\d+")
_OF_A_TRAINER = frozenset({"optimizer.pt", "optimizer.bin", "scheduler.pt", "trainer_state.json"})
_OF_OTHER_LIBRARIES = re.compile(r"tf_model\.h5|flax_model\.msgpack|.*\.onnx|rust_model\.ot")
_OF_THE_AUTHORS = re.compile(r"consolidated(\.\d+)?\.(pth|safetensors)")
_NUMBERED = re.compile(r"checkpoint-(\d+)")
_PICKLED = (".bin", ".pth", ".ckpt")


def other_layout(names: Collection[str]) -> str:
    """Return what a folder holds in place of a model, and what to give; empty where it may be a model.

    names: of the files and folders in it.
    """
    has_config = "config.json" in names
    if "model_index.json" in names:
        return "a pipeline of diffusers, which is no language model; give a causal language model"
    if has_config and any(_is_of_a_model(name) for name in names):
        return ""
    if "adapter_config.json" in names:
        return (
            "an adapter of PEFT without its base model; merge it (merge_and_unload, then save_pretrained) and give the"
            " folder of the merged model, or give the base model itself"
        )
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        # Without a config.json the one GGUF file of a folder is taken.
        return f"its weights are GGUF alone; name the file: .../{gguf[0]}" if has_config else ""
    if _any(_OF_DEEPSPEED, names):
        return (
            "a checkpoint of DeepSpeed; write its weights with `python zero_to_fp32.py . OUT --safe_serialization` and"
            " give that folder with the model's config.json and tokenizer"
        )
    if _any(_OF_TORCH, names):
        return "a checkpoint of torch in parts; load it and give what save_pretrained writes"
    if steps := sorted(int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))):
        return f"a folder of checkpoints; give one of them: .../checkpoint-{steps[-1]}"
    if not _OF_A_TRAINER.isdisjoint(names) and not any(name.endswith(_PICKLED) for name in _weights(names)):
        return "the state of a trainer without weights; give what save_pretrained writes"
    if "params.json" in names and _any(_OF_THE_AUTHORS, names):
        return "weights in the layout of the model's authors; give the version for transformers, with config.json"
    if found := sorted(name for name in names if _OF_OTHER_LIBRARIES.fullmatch(name)):
        return f"weights for another library alone ({found[0]}); give the version in safetensors"
    if not has_config and "tokenizer.json" in names and not _weights(names):
        return "a tokenizer without a model; give the folder with config.json and *.safetensors"
    return ""


def _is_of_a_model(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith("adapter_")


def _weights(names: Collection[str]) -> list[str]:
    return [
        name for name in names if name.endswith((".safetensors", *_PICKLED)) and name not in _OF_A_TRAINER
    ]


def _any(pattern: re.Pattern[str], names: Collection[str]) -> bool:
    return any(pattern.fullmatch(name) for name in names)
