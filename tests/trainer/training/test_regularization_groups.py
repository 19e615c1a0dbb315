"""Tests the named groups of weights for each architecture that dapt is tested with."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_trainer.errors import InputError
from dapt_trainer.training.regularization.penalty import penalized_names

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_ATTENTION = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
QWEN2_ATTENTION = LLAMA_ATTENTION | {f"self_attn.{name}_proj.bias" for name in "qkv"}
QWEN3_ATTENTION = LLAMA_ATTENTION | {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
LLAMA_MLP = {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
NEOX_ATTENTION = {
    f"attention.{name}.{kind}" for name in ("query_key_value", "dense") for kind in ("weight", "bias")
}
NEOX_MLP = {
    f"mlp.{name}.{kind}" for name in ("dense_h_to_4h", "dense_4h_to_h") for kind in ("weight", "bias")
}
EXPECTED = {
    "llama": (LLAMA_ATTENTION, LLAMA_MLP),
    "qwen2": (QWEN2_ATTENTION, LLAMA_MLP),
    "qwen3": (QWEN3_ATTENTION, LLAMA_MLP),
    "mistral": (LLAMA_ATTENTION, LLAMA_MLP),
    "gemma": (LLAMA_ATTENTION, LLAMA_MLP),
    "gemma3_text": (QWEN3_ATTENTION, LLAMA_MLP),
    "gpt_neox": (NEOX_ATTENTION, NEOX_MLP),
    "smollm3": (LLAMA_ATTENTION, LLAMA_MLP),
}
"""Each block's weights by group; SmolLM and SmolLM2 are of type llama."""


def names_of(model_type: str) -> list[str]:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SHAPE))
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("model_type", EXPECTED)
def test_groups_are_the_blocks_attention_and_mlp(model_type: str) -> None:
    names = names_of(model_type)
    for group, suffixes in zip(("attention", "mlp"), EXPECTED[model_type], strict=True):
        chosen = penalized_names(names, group, model_type=model_type)  # type: ignore[arg-type]
        assert {name.split(".", 3)[3] for name in chosen} == suffixes
        assert {name.split(".")[2] for name in chosen} == {"0", "1"}
        assert len(chosen) == 2 * len(suffixes)
    assert penalized_names(names, "all", model_type=model_type) == names


def test_an_empty_group_is_refused_with_the_type_of_the_model() -> None:
    with pytest.raises(InputError) as refused:
        penalized_names(["transformer.h.0.attn_1.weight"], "attention", model_type="oddity")
    assert str(refused.value) == (
        "pretraining.regularization.ewc.parameters: attention names no trained weight of a model of type oddity; "
        "write all"
    )
